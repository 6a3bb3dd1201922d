"""Files that a model's folder may be without: one that is there has to be readable."""

from __future__ import annotations

import pytest

from edgequant import models
from edgequant.errors import UserError


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"", b'{"eos_token_id": [1,', b"[]", None])
def test_a_small_file_that_is_there_and_cannot_be_read_is_not_taken_to_be_missing(tiny, tmp_path, name, content):
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    models.check_available(str(tmp_path))
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_bytes(content)
    for use in (models.check_available, models.load):
        with pytest.raises(UserError, match=rf"{name} (is not valid JSON|must hold a JSON object).*copy"):
            use(str(tmp_path))
