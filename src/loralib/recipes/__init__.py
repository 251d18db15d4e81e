"""Tasks as data, and the recipes that train them."""
