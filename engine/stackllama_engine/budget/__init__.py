"""Memory before launch: what a recipe will take, where it goes, what would make it fit. Torch-free, in milliseconds."""
