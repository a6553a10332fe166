"""How results get on paper: papermill runs, their plan, the book, what may be published."""
