"""Text template of every stage: ``Question: …`` and ``Answer: …``.

As published for StackLLaMA (https://huggingface.co/blog/stackllama). The prompt ends with the space after ``Answer:``,
so that prompt + answer is exactly the text the earlier stages were trained on.
"""


def prompt(question: str) -> str:
    """Return the prompt, which the policy continues."""
    return f"Question: {question}\n\nAnswer: "


def text(question: str, answer: str) -> str:
    """Return a question with its answer, as used in training and scoring."""
    return prompt(question) + answer
