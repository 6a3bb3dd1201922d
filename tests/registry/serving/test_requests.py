"""What a request may ask for, and what is said of one that cannot be answered."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from edgequant_registry.serving.refusal import BadRequestError
from edgequant_registry.serving.requests import DEFAULT_TOKENS, Request, parse

ASKED = {"role": "user", "content": "Where?"}


def test_a_chat_and_a_completion_are_read_with_their_options() -> None:
    sent = {"messages": [{"role": "system", "content": "Be brief."}, ASKED], "max_tokens": 5, "temperature": 1}
    assert parse(sent) == Request(messages=tuple(sent["messages"]), max_tokens=5, temperature=1.0)
    sent = {"prompt": ["a", "b"], "top_p": 0.5, "stop": ["\n", "."], "seed": 3}
    assert parse(sent) == Request(prompts=("a", "b"), top_p=0.5, stop=("\n", "."), seed=3)
    assert parse({"prompt": [3, 4], "seed": -1, "stream": True, "stream_options": {"include_usage": True}}) == Request(
        prompts=((3, 4),), seed=-1, stream=True, include_usage=True
    )
    assert parse({"prompt": [[3], "a"], "max_tokens": 2**40}) == Request(prompts=((3,), "a"), max_tokens=2**40)
    answered = {"role": "assistant", "content": "In the shed.", "refusal": None, "tool_calls": None, "annotations": []}
    assert parse({"messages": [ASKED, answered, ASKED]}).messages[1] == {"role": "assistant", "content": "In the shed."}
    assert parse({"prompt": "a", "stop": "\n"}) == Request(prompts=("a",), stop=("\n",), max_tokens=DEFAULT_TOKENS)


def test_what_openais_clients_send_besides_is_taken() -> None:
    developer = {"role": "developer", "content": [{"type": "text", "text": "Be brief."}], "name": "me"}
    sent = {
        "model": "any", "messages": [developer, ASKED],
        "max_completion_tokens": 7, "stream": False, "store": True, "metadata": {}, "top_logprobs": None,
        "n": 1, "user": "me", "stop": None, "temperature": None,
        "frequency_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}, "tools": None,
    }  # fmt: skip
    assert parse(sent) == Request(messages=({"role": "system", "content": "Be brief."}, ASKED), max_tokens=7)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (5, "a request must be an object with messages or a prompt, got 5"),
        ({}, "a request must have messages (a chat) or prompt (a text to go on with), got neither"),
        ({"messages": [ASKED], "prompt": "a"}, "got both"),
        ({"messages": []}, "messages must be a list of at least one message, got []"),
        ({"messages": "hello"}, "messages must be a list of at least one message, got 'hello'"),
        ({"messages": ["hello"]}, "messages[0] must be an object with role and content, got 'hello'"),
        ({"messages": [ASKED, {"role": "alien", "content": "x"}]}, "messages[1].role must be system, user, assistant"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role must be"),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be a text, got None"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be a text, got 5"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "must be a text or parts of type text"),
        ({"prompt": ""}, "prompt must be a text or a list of texts, none of them empty"),
        ({"prompt": []}, "prompt must be a text or a list of texts"),
        ({"prompt": [1, "a"]}, "prompt must be texts or lists of token ids, got [1, 'a']"),
        ({"prompt": [[1, 2], 3]}, "prompt must be a text, got 3"),
        ({"prompt": [True]}, "prompt must be a text, got True"),
        ({"prompt": [[]]}, "prompt must be a text or a list of texts, none of them empty"),
        ({"prompt": ["a"] * 65}, "prompt must be at most 64 prompts, got 65; send several requests"),
        ({"prompt": "\ud800"}, "prompt must be Unicode text"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must be a whole number, 1 or more, got 0"),
        ({"prompt": "a", "max_tokens": "ten"}, "max_tokens must be a whole number, 1 or more, got 'ten'"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens must be a whole number, 1 or more, got True"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens must be a whole number, 1 or more, got 1.5"),
        ({"prompt": "a", "max_tokens": 10**30}, "a whole number, from 1 to 9223372036854775807, got 10"),
        ({"prompt": "a", "max_tokens": 10**5000}, "got a value of type int"),
        ({"prompt": "a", "temperature": -1}, "temperature must be a number from 0 to 2, got -1"),
        ({"prompt": "a", "temperature": math.nan}, "temperature must be a number from 0 to 2, got nan"),
        ({"prompt": "a", "temperature": "hot"}, "temperature must be a number from 0 to 2, got 'hot'"),
        ({"prompt": "a", "top_p": 0}, "top_p must be a number above 0 and at most 1, got 0"),
        ({"prompt": "a", "stop": [""]}, "stop must be a text or a list of texts, none of them empty"),
        ({"prompt": "a", "stop": 5}, "stop must be a text, got 5"),
        ({"prompt": "a", "stop": list("abcde")}, "stop must be at most 4 texts, got 5"),
        ({"prompt": "a", "seed": 0.5}, "seed must be a whole number, -9223372036854775808 or more, got 0.5"),
        ({"prompt": "a", "seed": 2**63}, "seed must be a whole number, from -9223372036854775808 to 92233720368547758"),
        ({"prompt": "a", "stream": "yes"}, "stream must be true or false, got 'yes'"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options need stream: true; set it"),
        ({"prompt": "a", "stream": True, "stream_options": {"usage": 1}}, "an object with include_usage, got {'usage'"),
        ({"prompt": "a", "stream": True, "stream_options": {"include_usage": 1}}, "include_usage must be true or"),
        ({"prompt": "a", "logprobs": 0}, "logprobs must be left out, which is not offered here, got 0"),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, "response_format must be left out"),
        ({"prompt": "a", "user": 5}, "user must be of another type (it changes nothing), got 5"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood is unknown; there are: role"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "[0].tool_calls must be left out"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "content must be a text, got 5"),
        ({"prompt": "a", "n": 2}, "n must be left out, which is not offered here, got 2"),
        ({"messages": [ASKED], "tools": [{"type": "function"}]}, "tools must be left out"),
        ({"prompt": "a", "max_token": 5}, "max_token is unknown; did you mean max_tokens?"),
        ({"prompt": "a", "mirostat": 1}, "mirostat is unknown; there are: messages, prompt, max_tokens"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_answered_is_refused_in_one_line_with_status_400(sent: Any, said: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        parse(sent)
    body = json.loads(refused.value.serialize_as_json())
    assert said in body["message"] and "\n" not in body["message"] and len(body["message"]) < 200
    assert body["error"]["message"] == body["message"] and body["error"]["type"] == "invalid_request_error"
    assert refused.value.get_http_status_code() == 400
