"""A model in place of common.builder.Builder, for inference.backends.create."""


class Built:
    def __init__(self, model):
        self.model = model

    def release_model(self):
        self.model = None
