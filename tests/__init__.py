"""The proof; it mirrors jconv/."""
