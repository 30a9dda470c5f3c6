"""Where pixels come from: data sets, their subsets, augmentation and order."""
