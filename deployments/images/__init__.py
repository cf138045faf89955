"""An image cascade: convolutional nets on CIFAR-10 pictures."""
