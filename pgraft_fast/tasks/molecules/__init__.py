"""Small organic molecules in three dimensions: QM9, and the chemistry that generated ones are judged by."""
