"""The tour's settings are held against their bounds before it sets out."""

import pytest

from minillama.tour_config import TourConfig


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"text_dim": 31}, {"seed": -1}, {"text_max_lr": 1e40}])
def test_a_setting_that_cannot_be_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TourConfig(**wrong)
