"""Train and evaluate the models of `models` on folders of images."""
