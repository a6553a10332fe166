"""What a book is put together from: numbers in prose, the first page, the share page, the published page."""
