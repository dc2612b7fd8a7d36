import pytest
import torch

from peftkit import MultiLabelClassification, Seq2Seq, SequenceClassification, SequenceRegression
from peftkit.errors import NotReproducedError
from peftkit.runs.verification import (
    Tolerance,
    check_difference,
    combine_differences,
    compare_outputs,
    compute_divergence,
    find_equal_predictions,
    find_tolerance,
)

MASK = {"attention_mask": torch.ones(2, 3)}


def test_differences():
    task = SequenceClassification()
    right = {"logits": torch.tensor([[0.0, 2.0], [1.0, 0.0]])}
    same = compare_outputs(task, right, right, MASK)
    assert (same.difference, same.label_agreement, same.divergence, same.text_agreement) == (0.0, 1.0, 0.0, None)
    other = {"logits": torch.tensor([[0.0, 2.0], [0.0, 1.0]])}
    found = compare_outputs(task, other, right, MASK)
    assert found.difference == 1.0
    assert found.label_agreement == 0.5
    # KL of (p, 1-p) from (1-p, p) with p = sigmoid(1) is 2p - 1; the other row is equal.
    assert found.divergence == pytest.approx((2 * torch.tensor(1.0).sigmoid().item() - 1) / 2)
    both = combine_differences([same, found])
    assert (both.rows, both.difference, both.label_agreement) == (4, 1.0, 0.75)
    broken = {"logits": torch.full((2, 2), float("nan"))}
    with pytest.raises(NotReproducedError, match="by inf in a logit"):
        check_difference("it", compare_outputs(task, broken, right, MASK), Tolerance(difference=1e9))


def test_what_is_allowed_grows_with_the_logits():
    small, large = ({"logits": torch.tensor([[value]])} for value in (0.1, -30.0))
    assert find_tolerance(small).difference == pytest.approx(1e-4)
    assert find_tolerance(large).difference == pytest.approx(3e-3)
    assert find_tolerance(large, half=True).difference == pytest.approx(1.5)
    assert (find_tolerance(small).text_agreement, find_tolerance(small, same_device=False).text_agreement) == (1.0, 0.5)


def test_as_many_labels_as_tokens_are_no_padding():
    right = {"logits": torch.zeros(2, 3)}
    wrong = {"logits": torch.tensor([[0.0, 0.0, 100.0], [0.0, 0.0, 0.0]])}
    mask = {"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert compare_outputs(SequenceClassification(), wrong, right, mask).difference == 100.0


def test_a_longer_text_is_no_difference_of_the_others():
    task, batch = Seq2Seq(), {"attention_mask": torch.ones(2, 1), "decoder_input_ids": torch.ones(2, 1)}
    one = {"logits": torch.zeros(2, 1, 3), "generated": torch.tensor([[5, 6, -1], [7, 8, 9]])}
    other = {"logits": torch.zeros(2, 1, 3), "generated": torch.tensor([[5, 6], [7, 8]])}
    assert compare_outputs(task, other, one, batch).text_agreement == 0.5


def test_padding_of_a_target_does_not_count():
    batch = {"attention_mask": torch.ones(1, 2), "decoder_input_ids": torch.ones(1, 2)}
    right = {"logits": torch.zeros(1, 2, 3), "counted": torch.tensor([[True, False]])}
    other = {"logits": torch.tensor([[[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])}
    assert compare_outputs(Seq2Seq(), other, right, batch).difference == 0.0


def test_padding_does_not_count():
    mask = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    one = torch.zeros(2, 3, 2)
    other = one.clone()
    other[0, 2] = 7.0
    other[1, 1:] = -7.0
    task = SequenceClassification()
    assert compare_outputs(task, {"logits": other}, {"logits": one}, mask).difference == 0.0
    other[1, 0, 0] = 0.5
    assert compare_outputs(task, {"logits": other}, {"logits": one}, mask).difference == 0.5


def test_several_labels_and_numbers_have_their_own_agreement():
    many = MultiLabelClassification(thresholds={"a": 0.5, "b": 0.9})
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 3.0]])
    # The second label's threshold of 0.9 is a logit of 2.2.
    assert find_equal_predictions(many, one, other).tolist() == [[True, False]]
    p, q = one.sigmoid(), other.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum().item()
    assert compute_divergence(many, other, one).item() == pytest.approx(expected, rel=1e-5)
    number = SequenceRegression()
    equal = find_equal_predictions(number, torch.tensor([[1.0], [2.0]]), torch.tensor([[1.005], [2.1]]))
    assert equal.flatten().tolist() == [True, False]
    assert compute_divergence(number, torch.tensor([[1.0]]), torch.tensor([[1.5]])).item() == pytest.approx(0.5)
