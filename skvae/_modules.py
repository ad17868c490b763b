"""The torch module of a fitted estimator, which does not hold it: nothing to pickle or to copy."""

import operator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from numpy.typing import NDArray

from ._fitting import State, device_of, module_for, to_tensors
from ._vae import VAE

_MODULES: "WeakKeyDictionary[Any, tuple[tuple[Any, ...], VAE]]" = WeakKeyDictionary()


def module_of(fitted: Any) -> VAE:
    """To be looked at, not trained: built once, not by each call, on the memory of ``weights_``."""
    made_of = (fitted.device, fitted._columns, *fitted.weights_.values())
    before, vae = _MODULES.get(fitted, ((), None))
    if vae is not None and len(before) == len(made_of) and all(map(operator.is_, before, made_of)):
        return vae
    state = {name: _shared(array) for name, array in fitted.weights_.items()}
    vae = _built(fitted, state).requires_grad_(False)
    if vae.device.type == "cpu":  # elsewhere the weights are copies
        _MODULES[fitted] = (made_of, vae)
    return vae


def fresh_module(fitted: Any) -> VAE:
    """To be trained further: nobody else holds it."""
    return _built(fitted, to_tensors(fitted.weights_))


def _built(fitted: Any, state: State) -> VAE:
    shape = {**fitted._fitted_architecture, "device": "cpu"}
    vae = module_for(shape, fitted._columns, fitted.n_components_)
    vae.load_state_dict(state, assign=True)
    return vae.to(device_of({"device": fitted.device}))


def _shared(array: NDArray) -> torch.Tensor:
    return torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)
