"""What synthetic images are good for: networks trained on them and measured on real ones."""
