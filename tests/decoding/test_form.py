from llmcourse.decoding.form import parsed_share, regular_share


def test_code_is_counted_up_to_the_last_line_that_keeps_it_valid():
    assert parsed_share("x = 1\ny = 2\n") == 1.0
    assert parsed_share("x = 1\ny = = 2\nz = 3\n") == 1 / 3
    assert parsed_share("def f():\n    return 1\n    unfinis") == 1.0


def test_an_indented_opening_is_code_too():
    assert parsed_share("    def f(self):\n        return 1\n") == 1.0


def test_what_never_parses_or_never_ends_a_line_counts_as_nothing():
    assert parsed_share("def f(:\n") == 0.0
    assert parsed_share("x = 1") == 0.0
    assert parsed_share("\0\n") == 0.0


def test_verses_are_compared_with_the_first():
    assert regular_share("《静夜思》李白\n床前看月光，疑是地上霜。\n举头望山月，低头思故乡。") == 1.0
    assert regular_share("床前看月光，疑是地上。举头望") == 1 / 2


def test_a_poem_without_a_finished_verse_counts_as_nothing():
    assert regular_share("《送友人》李白\n青山") == 0.0
