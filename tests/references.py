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


# Transforms ---------------------------------------------------------------------------------------


def clip_by_block_rms(values, max_rms):
    scaled = []
    for value in values:
        value = np.asarray(value, "float64")
        scaled.append(value / max(1.0, np.sqrt(np.mean(value**2)) / max_rms))
    return scaled


def adaptive_clip(weight, gradient, clip_factor, epsilon, axes):
    """AGC of one variable, unit by unit: every unit is a separate slice."""
    weight, gradient = np.asarray(weight, "float64"), np.array(gradient, "float64")
    others = [axis for axis in range(gradient.ndim) if axis not in axes]
    for place in np.ndindex(*[gradient.shape[axis] for axis in others]):
        index = [slice(None)] * gradient.ndim
        for axis, number in zip(others, place, strict=True):
            index[axis] = number
        index = tuple(index)
        bound = clip_factor * max(norm(weight[index]), epsilon)
        length = norm(gradient[index])
        if length > bound:
            gradient[index] *= bound / length
    return gradient


def percentile_factors(norms, percentile, length):
    """AutoClip over the last norms: the factor of each step."""
    seen, factors = [], []
    for value in norms:
        seen.append(value)
        bound = np.percentile(seen[-length:], percentile)
        factors.append(min(1.0, bound / value))
    return factors


def z_score_norms(norms, threshold, decay, warmup, epsilon, least=0.01):
    """ZClip: clipped norms, and mean and variance at the end."""
    mean = variance = 0.0
    clipped, first = [], []
    for value in norms:
        if len(first) < warmup:
            first.append(value)
            mean, variance = np.mean(first), np.var(first)
        else:
            deviation = max(math.sqrt(variance), least * mean)
            z = (value - mean) / (deviation + epsilon)
            if z > threshold:
                value = mean + threshold * deviation / (z / threshold)
            mean = decay * mean + (1 - decay) * value
            variance = decay * variance + (1 - decay) * (value - mean) ** 2
        clipped.append(value)
    return clipped, mean, variance


def adagc_norms(norms, relative, decay, warmup, max_norm):
    """AdaGC: clipped norms of each variable in each step, and the averages at the end."""
    averages = [math.inf] * len(norms[0])
    clipped = []
    for step, row in enumerate(norms):
        total = math.sqrt(sum(value**2 for value in row))
        after = []
        for index, value in enumerate(row):
            if step < warmup:
                value = value * min(1.0, max_norm / total)
                averages[index] = min(averages[index], value)
            else:
                value = min(value, relative * averages[index])
                averages[index] = decay * averages[index] + (1 - decay) * value
            after.append(value)
        clipped.append(after)
    return clipped, averages


# Optimizers ---------------------------------------------------------------------------------------


class StableAdamW(Adam):
    """Wortsman et al., 2023: the rate, weight decay included, over max(1, RMS)."""

    def change(self, weight, gradient):
        weight, gradient = np.asarray(weight, "float64"), np.asarray(gradient, "float64")
        second = self.betas[1] * self.moments[1] + (1 - self.betas[1]) * gradient**2
        corrected = second / (1 - self.betas[1] ** (self.steps + 1))
        rms = math.sqrt(np.mean(gradient**2 / np.maximum(corrected, self.epsilon**2)))
        return super().change(weight, gradient) / max(1.0, rms)


class ClippyAdagrad:
    """Tang et al., 2023, for one weight."""

    def __init__(self, rate, accumulator, relative, by_accumulator, absolute, epsilon):
        self.rate, self.accumulator, self.epsilon = rate, accumulator, epsilon
        self.thresholds = relative, by_accumulator, absolute

    def change(self, weight, gradient):
        weight, gradient = np.asarray(weight, "float64"), np.asarray(gradient, "float64")
        root = np.sqrt(self.accumulator + self.epsilon) + 0 * gradient
        change = self.rate * gradient / root
        relative, by_accumulator, absolute = self.thresholds
        factor = 1.0
        for entry, w, r in zip(change.flat, weight.flat, root.flat, strict=True):
            if entry:
                bound = relative * abs(w) + by_accumulator / r + absolute
                factor = min(factor, bound / abs(entry))
        self.accumulator = self.accumulator + gradient**2
        return -factor * change


class SPAM(Adam):
    """Huang et al., 2025, for one weight; bias is corrected since the last reset."""

    def __init__(self, rate, threshold, reset, warmup, **arguments):
        super().__init__(rate, **arguments)
        self.decay, self.weight_decay = self.weight_decay * rate, 0.0  # by the whole rate
        self.full_rate, self.threshold, self.reset, self.warmup = rate, threshold, reset, warmup
        self.total = 0

    def change(self, weight, gradient):
        gradient = np.array(gradient, "float64")
        if self.total and self.total % self.reset == 0:
            self.moments, self.steps = [0.0, 0.0], 0
        second = self.moments[1] + 0 * gradient
        for place in np.ndindex(*gradient.shape):
            bound = math.sqrt(self.threshold * second[place])
            if bound and abs(gradient[place]) > bound:
                gradient[place] = math.copysign(bound, gradient[place])
        self.rate = self.full_rate
        if self.total >= self.reset and self.steps < self.warmup:
            cosine = 0.5 * (1 + math.cos(math.pi * self.steps / self.warmup))
            self.rate *= 1 - 0.99 * cosine
        self.total += 1
        return super().change(weight, gradient) - self.decay * np.asarray(weight, "float64")
