"""What files say, as they grow. No Textual here, no torch; safe to use from a thread."""
