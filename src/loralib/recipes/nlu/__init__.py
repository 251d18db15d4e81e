"""Understanding text: classes and scores for texts and pairs of them, GLUE's tasks among them."""
