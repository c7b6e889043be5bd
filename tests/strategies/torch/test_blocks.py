import pytest

from trainkit.errors import StrategyError

torch = pytest.importorskip("torch")

from trainkit.strategies.torch.blocks import find_blocks, outermost  # noqa: E402

nn = torch.nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


class Decoder(nn.Module):
    def __init__(self, num_layers=2):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(Block() for _ in range(num_layers))
        self.head = nn.Linear(4, 10)


class WithEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, batch_first=True), 3)
        self.decoder = Decoder()


def names(model, wanted=None):
    return sorted(name for name, _ in find_blocks(model, wanted))


def test_repeated_modules_of_a_list_are_blocks():
    assert names(Decoder()) == ["layers.0", "layers.1"]


def test_also_inside_of_other_modules_and_of_several_kinds():
    assert names(WithEncoder()) == [
        "decoder.layers.0",
        "decoder.layers.1",
        "encoder.layers.0",
        "encoder.layers.1",
        "encoder.layers.2",
    ]


def test_a_class_of_its_own_may_be_a_sequential():
    class Layers(nn.Sequential):
        pass

    assert names(nn.Sequential(*(Layers(nn.Linear(2, 2)) for _ in range(2)))) == ["0", "1"]


def test_stages_of_a_sequential_are_looked_into():
    stages = nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block()))
    assert names(stages) == ["0.0", "0.1", "1.0", "1.1"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
        Decoder(num_layers=1),
        nn.Linear(2, 2),
    ],
    ids=["layers", "one-of-a-kind", "a-layer"],
)
def test_layers_and_what_is_there_once_are_no_blocks(model):
    assert names(model) == []


def test_a_model_may_name_its_blocks_as_hugging_face_does():
    model = Decoder()
    model._no_split_modules = ["Attention"]
    assert names(model) == ["layers.0.attention", "layers.1.attention"]
    model._no_split_modules = ["ElsewhereOnly"]
    assert names(model) == ["layers.0", "layers.1"]


def test_blocks_by_class_or_name_and_inner_ones_first():
    both = [name for name, _ in find_blocks(Decoder(), [Block, "Attention"])]
    assert both == ["layers.1.attention", "layers.1", "layers.0.attention", "layers.0"]
    assert sorted(n for n, _ in outermost(find_blocks(Decoder(), [Block, "Attention"]))) == [
        "layers.0",
        "layers.1",
    ]


def test_a_block_that_is_used_twice_counts_once():
    block = Block()
    assert names(nn.ModuleList([block, block, Block()])) == ["0", "2"]


@pytest.mark.parametrize("wanted", [["Blok"], [nn.Conv2d]])
def test_an_unknown_block_is_an_error_that_lists_what_there_is(wanted):
    with pytest.raises(
        StrategyError, match=r"Decoder has no such module\. It has Attention, Block"
    ):
        find_blocks(Decoder(), wanted)


@pytest.mark.parametrize("wanted", ["Block", Block])
def test_one_class_instead_of_a_list_is_said(wanted):
    with pytest.raises(StrategyError, match="as a list"):
        find_blocks(Decoder(), wanted)
