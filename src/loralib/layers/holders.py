"""Whether any module holds a Parameter: asked of one that is assigned to a merged layer, as all objects are looked through."""

import gc

from torch import nn


def is_held(parameter: nn.Parameter) -> bool:
    """Whether a module holds `parameter` as one of its own.

    >>> layer = nn.Linear(2, 2)
    >>> is_held(layer.weight), is_held(nn.Parameter(layer.weight.detach()))
    (True, False)
    """
    for parameters in gc.get_referrers(parameter):
        if type(parameters) is not dict:
            continue
        for owner in gc.get_referrers(parameters):
            attributes = vars(owner) if issubclass(type(owner), nn.Module) else owner
            if type(attributes) is dict and attributes.get("_parameters") is parameters:
                return True
    return False
