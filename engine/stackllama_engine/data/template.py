"""The one template, used by every stage: ``Question: …`` and ``Answer: …``.

As published for StackLLaMA (https://huggingface.co/blog/stackllama). The prompt ends with the space after ``Answer:``,
so that prompt + answer is exactly the text the earlier stages were trained on.
"""


def prompt(question: str) -> str:
    """What the policy continues."""
    return f"Question: {question}\n\nAnswer: "


def text(question: str, answer: str) -> str:
    """A question with its answer, as trained on and as scored."""
    return prompt(question) + answer
