"""A recipe's memory by running it: the real model class, two steps, tensors that are only shapes. No GPU, no weights.

``python -m stackllama_engine.budget.trace`` reads a :class:`request.Request` as JSON and writes a
:class:`request.Trace`. This package alone in ``budget`` imports torch; the launcher's side is ``budget.tracing``.
"""
