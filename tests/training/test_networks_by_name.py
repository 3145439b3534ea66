"""Networks by name: what they read and give, what they refuse."""

import pytest
import torch

from cmsolvers.training.networks import Inputs, build_network, enable_gradient_checkpointing
from support.tiny_specs import OPTIONS, SHAPE, samples, shaken, spec

NAMES = list(OPTIONS)
TIMES = torch.tensor([-0.4, 0.1, 0.3, 0.9])
LABELS = torch.tensor([0, 1, 2, 2])


def built(name: str, seed: int = 0, shape=SHAPE, options=None, **reads):
    inputs = Inputs(shape, **reads)
    return build_network(name, inputs, seed, **(OPTIONS[name] | (options or {})))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_a_function_of_the_seed_alone(name):
    torch.manual_seed(5)
    one = built(name).state_dict()
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)  # nobody's random numbers were used up
    two, other = built(name).state_dict(), built(name, seed=1).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_read_matters(name, heads):
    """Each input changes the output of its own sample, and of no other one."""
    net = shaken(built(name, times=2, classes=3, numbers=("w",), heads=heads)).eval()
    x = samples()

    def called(x=x, t=TIMES, s=TIMES - 0.5, labels=LABELS, w=TIMES + 3.0):
        made = net(x, t, s, labels=labels, w=w)
        assert isinstance(made, tuple) is (heads == 2)
        parts = made if heads == 2 else (made,)
        assert all(part.shape == x.shape for part in parts)
        return torch.cat(parts, dim=1)

    first = called()
    changed = {
        "x": called(x=torch.cat([x[:1] + 0.1, x[1:]])),
        "t": called(t=torch.cat([TIMES[:1] + 0.2, TIMES[1:]])),
        "s": called(s=torch.cat([TIMES[:1] - 0.1, TIMES[1:] - 0.5])),
        "labels": called(labels=torch.tensor([1, 1, 2, 2])),
        "w": called(w=torch.cat([TIMES[:1] + 5.0, TIMES[1:] + 3.0])),
    }
    for what, made in changed.items():
        assert (made[0] - first[0]).abs().max().item() > 1e-3, what
        assert (made[1:] - first[1:]).abs().max().item() < 1e-5, what


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_weight(name):
    net = shaken(built(name, times=2, classes=3, numbers=("w",)))
    net(samples(), TIMES, TIMES - 0.5, labels=LABELS, w=TIMES).square().sum().backward()
    lost = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a softmax over keys changes nothing.
    assert [key for key in lost if not key.endswith("to_k.bias")] == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_added_is_nothing_at_first(name):
    """A network that reads more begins as the same function, its own table of labels aside."""
    plain = built(name)
    more = built(name, times=2, numbers=("w",))
    state = plain.state_dict()
    grown = more.state_dict()
    for key, value in state.items():
        if grown[key].shape == value.shape:
            grown[key].copy_(value)
        else:
            grown[key].zero_()
            grown[key][:, : value.shape[1]].copy_(value)
    x = samples()
    expected = plain.eval()(x, TIMES)
    made = more.eval()(x, TIMES, TIMES - 0.3, w=TIMES)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_labels_are_the_null_label(name):
    net = shaken(built(name, classes=3)).eval()
    x, null = samples(), torch.full((4,), 3)
    assert torch.equal(net(x, TIMES), net(x, TIMES, labels=null))
    assert not torch.equal(net(x, TIMES), net(x, TIMES, labels=LABELS))


def test_without_a_null_label_labels_are_required():
    net = built("unet", classes=3, null_label=False)
    with pytest.raises(TypeError, match=r"labels must be given, int64 \[4\] in 0 ... 2"):
        net(samples(), TIMES)
    with pytest.raises(ValueError, match="null_label must be true"):
        built("diffusers:DiTTransformer2DModel", classes=3, null_label=False)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_were_not_built_in_are_refused(name):
    net, x = built(name), samples()
    with pytest.raises(TypeError, match="network has no classes"):
        net(x, TIMES, labels=LABELS)
    with pytest.raises(TypeError, match="takes one time; got 2"):
        net(x, TIMES, TIMES)
    with pytest.raises(TypeError, match="no input 'w'"):
        net(x, TIMES, w=TIMES)
    more = built(name, times=2, classes=3, numbers=("w",))
    with pytest.raises(TypeError, match="takes two times; got 1"):
        more(x, TIMES, w=TIMES)
    with pytest.raises(TypeError, match=r"w must be a tensor \[B\]"):
        more(x, TIMES, TIMES)
    with pytest.raises(ValueError, match=r"labels must be one per sample, shape \[4\]"):
        more(x, TIMES, TIMES, labels=LABELS[:1], w=TIMES)


def test_a_transformer_drops_no_labels_itself():
    net = shaken(built("diffusers:DiTTransformer2DModel", classes=3)).train()
    x, labels = samples(64), torch.arange(64) % 3
    time = torch.zeros(64)
    assert torch.equal(net(x, time, labels=labels), net(x, time, labels=labels))
    for part in net.modules():  # with diffusers' own dropout the same test fails
        if type(part).__name__ == "LabelEmbedding":
            part.dropout_prob = 0.1
    assert not torch.equal(net(x, time, labels=labels), net(x, time, labels=labels))


def test_further_channels_of_the_output_are_left_out():
    """A DiT that learns its variance has twice the channels; the first half is the answer."""
    net = shaken(built("diffusers:DiTTransformer2DModel", options={"out_channels": 6})).eval()
    x = samples()
    whole = net.model(x, timestep=TIMES * 250.0, class_labels=torch.zeros(4, dtype=torch.int64))[0]
    assert whole.shape[1] == 6
    assert torch.equal(net(x, TIMES), whole[:, :3])
    with pytest.raises(ValueError, match="out_channels must be at least 3"):
        built("diffusers:DiTTransformer2DModel", options={"out_channels": 2})


@pytest.mark.parametrize(("options", "factor"), [({}, 250.0), ({"time_scale": 4.0}, 4.0)])
def test_times_are_scaled_for_the_sinusoids(options, factor):
    net = shaken(built("unet", options=options)).eval()
    x = samples()
    assert torch.equal(net(x, TIMES), net.model(x, TIMES * factor)[0])
    assert not torch.equal(net(x, TIMES), net.model(x, TIMES)[0])


def test_text_is_handed_on():
    net = shaken(built("diffusers:UNet2DConditionModel")).eval()
    x, text = samples(), torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(2))
    made = net(x, TIMES, encoder_hidden_states=text)
    assert torch.equal(made, net.model(x, TIMES * 250.0, text)[0])
    assert not torch.equal(made, net(x, TIMES))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_no_gradient(name):
    def gradients(on):
        net = shaken(built(name, classes=3)).train()
        if on:
            enable_gradient_checkpointing(net)
        net(samples(), TIMES, labels=LABELS).square().sum().backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    for one, two in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_gradient_checkpointing_without_a_switch():
    net = spec(network="import:support.tiny_specs:OwnNet").build(0)
    with pytest.raises(TypeError, match="off for OwnNet, which has no method enable_gradient"):
        enable_gradient_checkpointing(net)


def test_a_network_of_the_user():
    own = spec(network="import:support.tiny_specs:OwnNet", options={"width": 5}, classes=3)
    net = own.build(0)
    assert net.first.out_features == 5 and net.labels.num_embeddings == 4
    assert own.wrap(net)(samples(), 0.7, labels=LABELS).shape == (4, *SHAPE)
    assert torch.equal(own.build(3).first.weight, own.build(3).first.weight)


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("import:support.no_such:Net", {}, ImportError, "'support.no_such'.*cannot be imported"),
        ("import:support.tiny_specs:OwnNot", {}, ImportError, "did you mean 'OwnNet'"),
        ("import:support.tiny_specs", {}, ValueError, "must be 'import:package.module:Name'"),
        ("import:support.tiny_specs:NOT_A_NETWORK", {}, TypeError, "must be a class or function"),
        ("import:support.tiny_specs:samples", {}, TypeError, "must make a torch.nn.Module"),
        ("import:support.tiny_specs:OwnNet", {"widht": 3}, TypeError, "did you mean 'width'"),
        ("unett", {}, ValueError, "did you mean 'unet'"),
        ("mlp", {"witdh": 3}, TypeError, "no option 'witdh' .did you mean 'width'"),
        ("mlp", {"time_scale": 3}, TypeError, "no option 'time_scale'"),
        ("unet", {"chanels": [8]}, TypeError, "did you mean 'channels'"),
        ("diffusers:UNet2DModel", {"layers": 3}, TypeError, "no option 'layers'"),
        ("diffusers:UNet2DModle", {}, ValueError, "did you mean 'diffusers:UNet2DModel'"),
    ],
)
def test_names_and_options_that_are_not_known(name, options, error, text):
    with pytest.raises(error, match=text):
        build_network(name, Inputs(SHAPE), 0, **options)


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("unet", (3, 9, 8), "rows and columns that are divisible by 2"),
        ("diffusers:UNet2DModel", (3, 8, 9), "divisible by 2, for 2 resolutions"),
        ("diffusers:UNet2DConditionModel", (3, 9, 9), "divisible by 2"),
        ("diffusers:DiTTransformer2DModel", (3, 8, 16), "square and divisible by the patch size"),
        ("diffusers:DiTTransformer2DModel", (3, 9, 9), "square and divisible by the patch size, 2"),
        ("unet", (8,), r"that of an image, \[C, H, W\]"),
    ],
)
def test_shapes_that_do_not_divide(name, shape, text):
    with pytest.raises(ValueError, match=text):
        built(name, shape=shape)


@pytest.mark.parametrize(
    ("reads", "text"),
    [
        ({"times": 3}, "times"),
        ({"classes": 0}, "classes"),
        ({"numbers": ("labels",)}, "other than x, c_noise, c_noise_end, labels; got 'labels'"),
        ({"numbers": ("a b",)}, "got 'a b'"),
    ],
)
def test_inputs_out_of_range(reads, text):
    with pytest.raises(ValueError, match=text):
        Inputs(SHAPE, **reads)
