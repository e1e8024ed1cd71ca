"""Plans, starts, supervises and stops runs. Torch-free; Linux.

``launcher`` (plan, launch, resume) · ``reconcile`` (reconcile, stop) · ``supervisor`` and ``pipeline`` are processes.
"""
