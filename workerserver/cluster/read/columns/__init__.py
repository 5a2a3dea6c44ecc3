"""What many ranks say alike is kept, read and judged once."""
