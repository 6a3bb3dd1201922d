"""What a version is judged by: whether it is what was filed, and whether its figures are found again."""
