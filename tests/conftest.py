"""For all tests. A machine that is busy is no defect: hypothesis must not time its examples."""

from hypothesis import settings

settings.register_profile("llmserve", deadline=None)
settings.load_profile("llmserve")
