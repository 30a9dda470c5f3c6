"""Images: data sets, their subsets, augmentation and order."""
