"""Files that appear whole or not at all, and readers that execute nothing."""
