"""Front doors: one thin training script a family, with recipes in configs/."""
