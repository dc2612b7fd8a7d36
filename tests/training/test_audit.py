import pytest
import torch

from peftkit.errors import AuditError
from peftkit.training.audit import FIRST_CHECK, LAST_CHECK, TrainingAudit, fingerprint


class Adapted(torch.nn.Module):
    """A frozen layer with a low-rank adapter, which can be broken in the ways that real ones are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.base = torch.nn.Linear(6, 6).requires_grad_(False)
        self.a = torch.nn.Linear(6, 2, bias=False)
        self.b = torch.nn.Linear(2, 6, bias=False)
        self.head = torch.nn.Linear(6, 3)
        torch.nn.init.zeros_(self.b.weight)
        self.cut = False

    def forward(self, x):
        adapted = self.b(self.a(x))
        return self.head(self.base(x) + (adapted.detach() if self.cut else adapted))


def train(model, audit, steps, spoil=None):
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(1, steps + 1):
        loss = torch.nn.functional.cross_entropy(model(torch.randn(8, 6)), torch.randint(0, 3, (8,)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if spoil:
            spoil(step)
        audit.step(step)
    return audit.finish(steps)


def test_a_model_that_trains_passes_at_the_first_check():
    model = Adapted()
    finding = train(model, TrainingAudit(model), 5)
    assert finding == {
        "verdict": "passed", "passed_at_step": FIRST_CHECK, "end_step": 5, "trainable_tensors": 4, "frozen_tensors": 2,
        "unmoved_in_16_bits": 0,
    }  # fmt: skip


def test_an_adapter_without_gradient_is_named_though_the_loss_falls():
    model = Adapted()
    model.cut = True
    with pytest.raises(AuditError, match=r"step 10: trainable but without a finite non-zero gradient: a.weight, b"):
        train(model, TrainingAudit(model), LAST_CHECK)


def test_a_short_run_that_did_not_train_fails_at_its_end():
    model = Adapted()
    model.cut = True
    with pytest.raises(AuditError, match=r"end of training.*a\.weight"):
        train(model, TrainingAudit(model), FIRST_CHECK)


def test_a_frozen_tensor_that_changes_is_named():
    model = Adapted()

    def spoil(step):
        if step == 6:
            model.base.weight.data[0, 0] = torch.nextafter(model.base.weight.data[0, 0], torch.tensor(9.0))

    with pytest.raises(AuditError, match=r"end of training.*frozen but changed: base\.weight"):
        train(model, TrainingAudit(model), 7, spoil)


def test_a_trainable_tensor_that_stays_still_is_named():
    model = Adapted()
    start = model.head.bias.detach().clone()
    with pytest.raises(AuditError, match=r"trainable but unchanged: head\.bias"):
        train(model, TrainingAudit(model), LAST_CHECK, lambda step: model.head.bias.data.copy_(start))


def test_a_weight_that_is_no_number_is_named():
    model = Adapted()

    def spoil(step):
        if step == 5:
            model.head.weight.data[0, 0] = float("nan")

    with pytest.raises(AuditError, match=r"trainable but not finite: head\.weight"):
        train(model, TrainingAudit(model), 5, spoil)


def test_a_tensor_in_16_bits_that_rounds_back_is_counted_not_failed():
    model = Adapted().to(torch.bfloat16)
    audit = TrainingAudit(model)
    start = model.head.bias.detach().clone()
    for step in range(1, LAST_CHECK + 1):
        model(torch.randn(8, 6, dtype=torch.bfloat16)).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0 if parameter.grad is None else parameter.grad)
        model.head.bias.data.copy_(start)
        audit.step(step)
    assert audit.finish(LAST_CHECK)["unmoved_in_16_bits"] == 1


def test_two_steps_are_too_few_to_judge_but_not_to_hold_the_frozen():
    model = Adapted()
    assert train(model, TrainingAudit(model), 2)["verdict"].startswith("inconclusive")
    model = Adapted()
    with pytest.raises(AuditError, match="frozen but changed"):
        train(model, TrainingAudit(model), 2, lambda step: model.base.bias.data.add_(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_a_fingerprint_tells_the_last_bit(dtype):
    tensor = torch.nn.Parameter(torch.arange(10).to(dtype), requires_grad=False)
    before = fingerprint(tensor)
    assert before == fingerprint(torch.nn.Parameter(tensor.data.clone(), requires_grad=False))
    tensor.data.view(torch.uint8)[-1] ^= 1
    assert before != fingerprint(tensor)


def resumed(steps, start_step, passed_before, spoil=None, **how):
    """Run the audit for a resumed run with `steps` further steps and return the result."""
    model = Adapted()
    with torch.no_grad():
        model.b.weight.fill_(0.1)
    audit = TrainingAudit(model, start_step, passed_before)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(start_step + 1, start_step + steps + 1):
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        audit.step(step)
    if spoil:
        spoil(model, start)
    return audit.finish(start_step + steps, **how)


def test_a_resumed_run_is_watched_anew():
    finding = resumed(5, 20, 3)
    assert (finding["verdict"], finding["passed_at_step"], finding["resumed_at_step"]) == ("passed", 23, 20)
    # Its last steps are too few to judge by, but what came before has passed.
    assert resumed(2, 20, 3)["passed_at_step"] == 3
    assert resumed(2, 20, None)["verdict"] == "inconclusive: needs at least 3 steps, got 2"


def test_weights_that_were_put_back_to_the_checkpoint_are_no_failure():
    def put_back(model, start):
        model.load_state_dict(start)

    with pytest.raises(AuditError, match="trainable but unchanged"):
        resumed(5, 20, 3, put_back)
    assert resumed(5, 20, 3, put_back, restored=True)["verdict"] == "passed"
