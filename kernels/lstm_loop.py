"""An LSTM cell for a loop: its steps run one by one, its weight gradients are one product after the loop.

Autograd computes and adds a gradient of the size of the weights at every step; here a step's backward
keeps its input and the gradient of its gates, and the weights' gradient is one large product over all
steps (Appleyard et al. 2016, "Optimizing performance of recurrent neural networks on GPUs", section 3.3).
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class LSTMLoop:
    """Called like an nn.LSTMCell, `h, c = cell(x, (h, c))`, step after step.

    Args:
        weight_ih: [4n, n_in]; weight_hh: [4n, n]; bias_ih, bias_hh: [4n]; gate order i, f, g, o.
    """

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor):
        weight = torch.cat((weight_ih, weight_hh), dim=1)  # [4n, n_in + n]
        bias = bias_ih + bias_hh
        self.weight, self.bias = weight.detach(), bias.detach()
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.token = _Weights.apply(weight, bias, self.steps)

    def __call__(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """x [B, n_in], state (h, c) of [B, n] each -> (h', c'), each [B, n]."""
        h, c = state
        h, c, token = _Step.apply(torch.cat((x, h), dim=1), c, self.token, self.weight, self.bias, self.steps)
        if token.requires_grad:  # not in a step without gradients: it would cut the later ones off
            self.token = token
        return h, c


class _Weights(Function):
    """Turns the weights into a token that goes from step to step: autograd comes back here after all of them."""

    @staticmethod
    def forward(ctx, weight, bias, steps):
        ctx.steps = steps
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        if not ctx.steps:  # no step's output had a gradient
            return None, None, None
        inputs, d_gates = (torch.cat(tensors) for tensors in zip(*ctx.steps, strict=True))
        ctx.steps.clear()
        return d_gates.T @ inputs, d_gates.sum(dim=0), None


class _Step(Function):
    @staticmethod
    def forward(ctx, xh, c, token, weight, bias, steps):
        i, f, g, o = torch.addmm(bias, xh, weight.T).chunk(4, dim=1)
        i, f, g, o = i.sigmoid_(), f.sigmoid_(), g.tanh_(), o.sigmoid_()
        c_next = torch.addcmul(f * c, i, g)
        tanh_c = torch.tanh(c_next)
        ctx.save_for_backward(xh, c, i, f, g, o, tanh_c, weight)
        ctx.steps = steps
        ctx.set_materialize_grads(False)
        return o * tanh_c, c_next, xh.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx, d_h, d_c_next, d_token):
        if d_token is None:
            # The backward pass starts here. One that needed the gradients of inputs only has left its steps.
            ctx.steps.clear()
        if d_h is None and d_c_next is None:
            return None, None, d_token, None, None, None
        xh, c, i, f, g, o, tanh_c, weight = ctx.saved_tensors
        d_h = torch.zeros_like(c) if d_h is None else d_h
        d_c_next = torch.zeros_like(c) if d_c_next is None else d_c_next
        d_c_next = torch.addcmul(d_c_next, d_h * o, 1 - tanh_c * tanh_c)
        d_gates = torch.cat(
            (
                d_c_next * g * i * (1 - i),
                d_c_next * c * f * (1 - f),
                d_c_next * i * (1 - g * g),
                d_h * tanh_c * o * (1 - o),
            ),
            dim=1,
        )  # [B, 4n]
        ctx.steps.append((xh, d_gates))
        return d_gates @ weight, d_c_next * f, d_gates.new_zeros(()), None, None, None
