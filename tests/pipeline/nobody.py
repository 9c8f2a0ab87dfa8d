"""An observer of a job that nobody watches."""


class Nobody:
    """See `pipeline.driver.Observer`."""

    def start(self, images, resumed):
        pass

    def update(self, count):
        pass

    def say(self, sentence):
        pass
