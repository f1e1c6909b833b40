"""Names of losses and activations, and those by which people know them from elsewhere."""

import natgrad_fast as ng
import numpy as np
import pytest
import reference
from natgrad_fast import _core
from natgrad_fast.losses.standard import _SYNONYMS as LOSS_SYNONYMS
from natgrad_fast.model.mlp import _SYNONYMS as ACTIVATION_SYNONYMS


def message_of(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def test_python_core_and_oracle_know_the_same_names():
    assert set(_core.loss_names) == set(reference.LOSSES)
    assert set(_core.activation_names) == set(reference.ACTIVATIONS)
    assert len(set(_core.loss_names)) == len(_core.loss_names)
    classes = {x for x in vars(ng.losses).values() if isinstance(x, type)}
    for name in _core.loss_names:
        loss = ng.losses.as_loss(name)
        assert loss.name == name
        assert type(loss) in classes
    assert len(classes) == len(_core.loss_names) + 1  # and their base
    for name in _core.activation_names:
        assert ng.MLP([2, 3, 1], name).activations == (name, "identity")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mse", "squared_error"),
        ("MSELoss", "squared_error"),
        ("mean_squared_error", "squared_error"),
        ("squared_loss", "squared_error"),
        ("cross_entropy", "softmax_cross_entropy"),
        ("CrossEntropyLoss", "softmax_cross_entropy"),
        ("nll", "softmax_cross_entropy"),
        ("NLLLoss", "softmax_cross_entropy"),
        ("sparse_categorical_crossentropy", "softmax_cross_entropy"),
        ("bce", "bernoulli_cross_entropy"),
        ("BCEWithLogitsLoss", "bernoulli_cross_entropy"),
        ("binary_crossentropy", "bernoulli_cross_entropy"),
        ("sigmoid", "bernoulli_cross_entropy"),
        ("PoissonNLLLoss", "poisson"),
        ("GaussianNLLLoss", "gaussian_mean_variance"),
        ("huber", "student_t"),
        ("StudentT", "student_t"),
        ("Squared-Error", "squared_error"),
        ("poison", "poisson"),
    ],
)
def test_names_of_losses_that_people_type(name, meant):
    message = message_of(lambda: ng.losses.as_loss(name))
    assert message.startswith(f"unknown loss {name!r}; known: squared_error, ")
    assert message.endswith(f"; did you mean {meant!r}?")


@pytest.mark.parametrize("name", ["log_loss", "log loss", "logistic", "deviance"])
def test_names_that_mean_two_losses(name):
    message = message_of(lambda: ng.losses.as_loss(name))
    assert "for classes it is 'softmax_cross_entropy'" in message
    assert message.endswith("in [0, 1] 'bernoulli_cross_entropy'")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sigmoid", "logistic"),
        ("Sigmoid", "logistic"),
        ("expit", "logistic"),
        ("linear", "identity"),
        ("swish", "silu"),
        ("SiLU", "silu"),
        ("LeakyReLU", "leaky_relu"),
        ("leaky-relu", "leaky_relu"),
        ("TANH", "tanh"),
        ("tansig", "tanh"),
        ("sine", "sin"),
        ("tahn", "tanh"),
        ("soft_plus", "softplus"),
    ],
)
def test_names_of_activations_that_people_type(name, meant):
    for call, what in [
        (lambda: ng.MLP([2, 3, 1], name), "activation"),
        (lambda: ng.MLP([2, 3, 1], ["tanh", name]), "activation"),
        (lambda: ng.MLP([2, 3, 1], output_activation=name), "output_activation"),
    ]:
        message = message_of(call)
        assert message.startswith(f"unknown {what} {name!r}; known: identity, tanh, ")
        assert message.endswith(f"; did you mean {meant!r}?")


def test_softmax_is_no_activation():
    message = message_of(lambda: ng.MLP([2, 3, 4], output_activation="softmax"))
    assert "the link belongs to the loss" in message
    assert message.endswith("'softmax_cross_entropy'")


def test_a_name_far_from_all_is_answered_without_a_guess():
    losses, activations = (", ".join(names) for names in (_core.loss_names, _core.activation_names))
    assert message_of(lambda: ng.losses.as_loss("qqq")).endswith("; known: " + losses)
    assert message_of(lambda: ng.losses.as_loss("")).endswith("; known: " + losses)
    assert message_of(lambda: ng.MLP([1, 1, 1], "??")).endswith("; known: " + activations)


@pytest.mark.parametrize(
    ("synonyms", "known"),
    [(LOSS_SYNONYMS, _core.loss_names), (ACTIVATION_SYNONYMS, _core.activation_names)],
)
def test_synonyms_are_spelt_as_they_are_looked_up_and_lead_somewhere(synonyms, known):
    for name, meant in synonyms.items():
        assert name.isalnum()
        assert name == name.lower()
        assert name not in known
        assert meant in known or any(f"'{n}'" in meant for n in _core.loss_names)


def test_a_class_is_not_a_loss():
    with pytest.raises(TypeError, match=r"loss is the class StudentT, wanted an instance: Stud"):
        ng.losses.as_loss(ng.losses.StudentT)


def test_one_softmax_output_with_two_labels_names_the_loss_that_is_meant():
    net, x = ng.MLP([3, 1]), np.zeros((4, 3))
    hint = message_of(lambda: ng.value(net, "softmax_cross_entropy", x, [0, 1, 1, 0]))
    assert hint == (
        "y must hold labels in [0, 1), got 1 at position 1; for two classes with one output the "
        "loss is bernoulli_cross_entropy"
    )
    message = message_of(lambda: ng.value(net, "softmax_cross_entropy", x, [0, 2, 1, 0]))
    assert message == "y must hold labels in [0, 1), got 2 at position 1"
    # a single class stays what it is: nothing to learn
    h, g = ng.value_and_grad(net, "softmax_cross_entropy", x, [0, 0, 0, 0])
    assert h == 0
    assert not g.any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "loss 'student_t' needs a value of 'df'"),
        ({"df": 1.0}, "loss 'student_t' needs a value of 'scale'"),
        ({"df": 1.0, "scale": 1.0, "loc": 0.0}, "loss 'student_t' has 2 parameters, got 3"),
    ],
)
def test_the_core_takes_the_parameters_of_a_loss_by_name(parameters, message):
    assert message_of(lambda: _core.Loss("student_t", parameters)) == message
    assert _core.Loss("student_t", {"df": 1.0, "scale": 2.0}).num_targets(3) == 3
    assert message_of(lambda: _core.Loss("poisson", {"df": 1.0})).startswith("loss 'poisson' has 0")
    assert message_of(lambda: _core.Loss("mse", {})) == "unknown loss 'mse'"
