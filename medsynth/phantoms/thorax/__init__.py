"""Chests: radiographs, CT, MR and PET of one anatomy."""
