"""Independent values in NumPy float64: what the mathematics says, without gradstab and Keras."""

import math

import numpy as np


def norm(value, ord=2.0):
    magnitudes = np.abs(np.asarray(value, "float64"))
    if ord == math.inf:
        return float(magnitudes.max(initial=0.0))
    largest = magnitudes.max(initial=0.0) or 1.0
    return float(largest * np.sum((magnitudes / largest) ** ord) ** (1.0 / ord))


def global_norm(values, ord=2.0):
    return norm([norm(value, ord) for value in values if value is not None], ord)


def clip_by_value(values, clip_value):
    return [
        None if v is None else np.clip(np.asarray(v, "float64"), -clip_value, clip_value)
        for v in values
    ]


def clip_by_norm(values, max_norm):
    return [
        None if v is None else np.asarray(v, "float64") * min(1.0, max_norm / (norm(v) or max_norm))
        for v in values
    ]


def clip_by_global_norm(values, max_norm):
    factor = min(1.0, max_norm / (global_norm(values) or max_norm))
    return [None if v is None else np.asarray(v, "float64") * factor for v in values]


def limit_update_ratio(weight, change, max_ratio, epsilon=1e-3):
    """The change of one weight, bounded: r·max(‖w‖, ε)/‖Δw‖ where that is below 1."""
    bound = max_ratio * max(norm(weight), epsilon)
    length = norm(change)
    return np.asarray(change, "float64") * (bound / length if length > bound else 1.0)


class Adam:
    """Kingma and Ba, 2015, with decoupled weight decay before the step, for one weight."""

    def __init__(self, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=0.0):
        self.rate, self.epsilon, self.weight_decay = rate, epsilon, weight_decay
        self.betas = (beta_1, beta_2)
        self.moments = [0.0, 0.0]
        self.steps = 0

    def change(self, weight, gradient):
        self.steps += 1
        weight, gradient = np.asarray(weight, "float64"), np.asarray(gradient, "float64")
        for i, (beta, power) in enumerate(zip(self.betas, (gradient, gradient**2), strict=True)):
            self.moments[i] = beta * self.moments[i] + (1 - beta) * power
        corrections = [1 - beta**self.steps for beta in self.betas]
        rate = self.rate * math.sqrt(corrections[1]) / corrections[0]
        decayed = -self.weight_decay * self.rate * weight
        return decayed - rate * self.moments[0] / (np.sqrt(self.moments[1]) + self.epsilon)


class Momentum:
    """Gradient descent with momentum, for one weight; `momentum=0` for plain descent."""

    def __init__(self, rate, momentum=0.0, weight_decay=0.0):
        self.rate, self.momentum, self.weight_decay = rate, momentum, weight_decay
        self.velocity = 0.0

    def change(self, weight, gradient):
        decayed = -self.weight_decay * self.rate * np.asarray(weight, "float64")
        self.velocity = self.momentum * self.velocity - self.rate * np.asarray(gradient, "float64")
        return decayed + self.velocity
