import pytest
import torch
from torch.utils.data import DataLoader, Subset

from trainkit.data.torch import MnistDataset, ShardedDataLoader


@pytest.fixture(params=["floats", "bytes"])
def dataset(request, monkeypatch):
    monkeypatch.delenv("TRAINKIT_MNIST_URL", raising=False)
    if request.param == "bytes":  # as with all 60,000
        monkeypatch.setattr("trainkit.data.torch.mnist._FLOATS_UP_TO", 0)
    return MnistDataset.load(train=False)


def test_samples_are_normalised_images_with_labels(dataset):
    image, label = dataset[0]
    assert image.shape == (1, 28, 28)
    assert image.dtype == torch.float32
    assert type(label) is int
    images, labels = dataset.__getitems__(list(range(len(dataset)))).stacked
    assert abs(float(images.mean())) < 0.1
    assert abs(float(images.std()) - 1) < 0.1
    assert images.min() == pytest.approx(-0.1307 / 0.3081)
    assert sorted(set(labels.tolist())) == list(range(10))


def test_a_batch_is_the_same_however_it_is_fetched(dataset):
    class OneByOne(torch.utils.data.Dataset):
        def __len__(self):
            return 200

        def __getitem__(self, index):
            return dataset[index]

    few = Subset(dataset, range(200))
    fast = ShardedDataLoader(DataLoader(few, 100))
    for batches in zip(fast, DataLoader(few, 100), DataLoader(OneByOne(), 100), strict=True):
        for x, y in batches[1:]:
            torch.testing.assert_close(x, batches[0][0])
            assert torch.equal(y, batches[0][1])


def test_ids_come_along_when_asked_for(monkeypatch):
    monkeypatch.delenv("TRAINKIT_MNIST_URL", raising=False)
    dataset = MnistDataset.load(train=False, with_ids=True)
    assert dataset[5][2] == 5
    loader = ShardedDataLoader(DataLoader(dataset, 64, shuffle=True, num_workers=1))
    seen = []
    for images, labels, ids in loader:
        assert torch.equal(labels, dataset.labels[ids])
        assert len(images) == len(ids)
        seen += ids.tolist()
    assert sorted(seen) == list(range(2000))


def test_a_users_collation_gets_samples(dataset):
    def collate(samples):
        return [label for _, label in samples]

    batch = next(iter(ShardedDataLoader(DataLoader(dataset, 3, collate_fn=collate))))
    assert batch == dataset.labels[:3].tolist()
