"""Trace of a recipe's memory: the real model class, two steps, fake tensors (shapes only). No GPU, no weights.

``python -m stackllama_engine.budget.trace`` reads a :class:`request.Request` as JSON and writes a
:class:`request.Trace`. Only this package of ``budget`` imports torch; the launcher's side is ``budget.tracing``.
"""
