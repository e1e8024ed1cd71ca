"""Memory estimate before launch: how much a recipe needs, for what, and how to make it fit. Torch-free."""
