"""The chat generator: a process of its own that answers prompts with a run's model, before and after training.

``python -m stackllama_engine.train.chat RUN_DIR [--checkpoint step-000100] [--cpu]``; what it reads and writes is in
``contract/chat_messages.py``. Base and tuned model are the same weights in memory, with the adapter off and on.
"""
