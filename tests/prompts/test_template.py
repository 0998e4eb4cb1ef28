"""Templates of users for the message that shows a state."""

from __future__ import annotations

from pathlib import Path

import pytest

from verl_ee.config import PromptConfig
from verl_ee.errors import ConfigError
from verl_ee.prompts import State, Turn, prompt_format

STATE = State("find a mug", (Turn("A hall.", "look"), Turn("A box.", "open box")), "It is empty.", ("look", "go"), 5)
TEMPLATE = """
{% if history %}
Done so far: {{ steps }}.
{% for turn in history %}
[{{ turn.number }}: {{ turn.observation }} -> {{ turn.action }}]
{% endfor %}
{% endif %}
Step {{ step }} of {{ task }}: {{ observation }} Choose from {{ actions | join(", ") }}.
{{ instruction }}
""".strip()


@pytest.mark.parametrize("name", ["text", "tagged"])
def test_a_template_makes_the_user_s_message(name: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt.jinja"
    path.write_text(TEMPLATE)
    form = prompt_format(PromptConfig(format=name, system="", template=f"file:{path}", instruction="Answer."))
    (message,) = form.policy_prompt(STATE)
    assert message["content"].splitlines() == [
        "Done so far: 5.",
        "[4: A hall. -> look]",
        "[5: A box. -> open box]",
        "Step 6 of find a mug: It is empty. Choose from look, go.",
        "Answer.",
    ]


def test_a_template_makes_each_message_of_a_chat() -> None:
    template = "{% if not history %}Task: {{ task }}\n{% endif %}{{ step }}: {{ observation }}"
    form = prompt_format(PromptConfig(format="react", system="", template=template))
    contents = [message["content"] for message in form.policy_prompt(STATE)]
    assert contents == [
        "Task: find a mug\n4: A hall.",
        "Action: look",
        "5: A box.",
        "Action: open box",
        "6: It is empty.",
    ]


def test_text_of_an_environment_is_no_template() -> None:
    form = prompt_format(PromptConfig(template="{{ observation }}"))
    assert form.policy_prompt(State("t", (), "{{ task }} {% raw %}"))[-1]["content"] == "{{ task }} {% raw %}"


def test_a_template_that_is_none_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"early_experience\.prompt\.template, line 2: "):
        prompt_format(PromptConfig(template="fine\n{% if %}"))


@pytest.mark.parametrize(
    "template",
    ["{{ reward }}", "{{ task.__class__.__mro__ }}", "{{ 1 / 0 }}", "{{ history[9].action }}", "{{ '%(x)s' % {} }}"],
)
def test_a_template_that_fails_or_reaches_out_is_refused(template: str) -> None:
    form = prompt_format(PromptConfig(template=template))
    with pytest.raises(ConfigError, match=r"early_experience\.prompt\.template cannot be rendered .*It may use task, "):
        form.policy_prompt(STATE)
