"""Built-in gold tasks: short text tasks with an exact utility and an exact preference, generated from a seed.

What a prompt asks
------------------
A prompt is a family's request and one mark at the end. The mark asks for a form: `.` plain, `!` capitals, `?` brackets.
Difficulty 0 has `.` and `!` (`.` and `?` where there are no letters); from difficulty 1 letters have all three. Words
have 3-4, 5-6, 7-8 and 9-12 letters at difficulty 0 to 3, sums 3, 4, 5 and 6 addends, so that `parse` reads the
difficulty off the text.

>>> from prl_jax.data.gold import answer, attributes, parse, preference, scale, utility
>>> for prompt in ("sort dbca.", "rev dbca!", "next dbca.", "count abaa!", "a>e bada.", ">c dbfe.", "3+9+4?"):
...     print(f"{parse(prompt).family:6}{prompt:12}{answer(parse(prompt))}")
sort  sort dbca.  abcd
rev   rev dbca!   ACBD
next  next dbca.  ecdb
count count abaa! A3B1
swap  a>e bada.   bede
list  >c dbfe.    dfe
add   3+9+4?      <12,16>

sort: alphabetical order; rev: backwards; next: every letter's successor; count: how often each letter occurs; swap: the
word with one letter rewritten as another; list: the letters that come after the given one, in the order of the word;
add: the running totals of a sum.

What a response is worth
------------------------
`u = c (0.6 + 0.25 f + 0.15 b)` for any text, all in [0, 1]. Correctness `c` compares the content, form undone, with the
right content (edit distance, sharpened so that unrelated answers are near 0); form `f` is the share of the form request
that is obeyed; brevity `b` halves with each unneeded character. What follows a `~` or a space is filler. Beyond 16
unneeded characters, which is more than the data have, each one costs 0.02, without bound.

>>> for response in ("ABCD", "abcd", "ABCD~", "abcd~~", "ABDC", "FEAD", ""):
...     print(f"{response:8}{utility('sort dbca!', response):.3f}")
ABCD    1.000
abcd    0.750
ABCD~   0.925
abcd~~  0.637
ABDC    0.446
FEAD    0.000
        0.000

What annotators prefer
----------------------
`p*(y1 > y2 | x) = sigmoid(scale(x) (u1 - u2 + k cyclic(a1, a2)))`. The scale is 4 to 20, by family, and 1.6 times
higher where a form is asked for: the same gap in utility is obvious on one prompt and subtle on another, which is what
stresses calibration across prompts.

>>> scale("a>e bada."), scale("next dbca!")
(4.0, 20.0)
>>> round(preference("a>e bada.", "bede", "bede~"), 2), round(preference("next dbca!", "ECDB", "ECDB~"), 2)
(0.57, 0.82)

`cyclic` is skew-symmetric in the attributes (correctness beats brevity beats form beats correctness); with
`intransitivity = k > 0` there are cycles that no scalar reward explains. `k` is in units of utility: among the pairs'
responses about 1 % of the triples are cyclic at k = 1, 5 % at 1.5 and 15 % at 2.
A label is a draw from `label_distribution`: a tie with probability `4 ties p* (1 - p*)`, else a sample of p* that is
flipped with probability `noise`. Records carry the draw (`chosen`, `tie`) and, as `p_chosen`, its expectation
`P(first) + P(tie) / 2`: the truth that calibration is measured against. `bayes_accuracy` is what a judge that knows p*
reaches on drawn labels.

What demonstrations get wrong
-----------------------------
Demonstrations are imperfect in a systematic way, so that the most likely text is flawed, greedy decoding after SFT
included, while each better choice is made 35 or 40 % of the time, which reinforcement can build on. Independently:
a form other than plain is ignored (65 %); a `~` nobody asked for ends the response (65 %); `rev` exchanges the last two
letters and `next` leaves the last letter as it was (60 %). Each flaw is decided at one character, so the mode of the
sequence is also the mode of every next character (`typical_demonstration`): mean utility about 0.67 at difficulty 0,
0.78 for a sampled demonstration. The rates are arguments.

What pairs are made of
----------------------
Nothing in a response alone tells whether it is good. Wrong content is the right content of another payload (edited in
one or two places, or unrelated), so it is as well-formed as the right one and as long; form is judged against the
prompt's mark, and contrasts of form occur in both directions; filler is on the better side about as often as on the
worse one. Kinds of pairs: unrelated content, near content, form, filler, and demonstrations as a policy after SFT would
write them. Labels, lengths and characters are balanced; a fitted response-only judge and "longer wins" stay below 0.6
accuracy (measured in the tests), where `bayes_accuracy` is about 0.87.

Splits are disjoint by content: a hash of family and payload assigns 8 in 10 to train, 1 to validation, 1 to test, for
every form, seed and kind of record. `GoldArguments` lists all arguments of `builder.gold_records`.
"""

from prl_jax.data.gold.arguments import GoldArguments, make_arguments
from prl_jax.data.gold.candidates import demonstration, split_of, typical_demonstration
from prl_jax.data.gold.families import FAMILIES, Family, GoldTask, answer, parse, render
from prl_jax.data.gold.preferences import (
    Attributes,
    attributes,
    bayes_accuracy,
    cyclic,
    label_distribution,
    preference,
    scale,
    stated_content,
    utility,
)

__all__ = [
    "FAMILIES",
    "Attributes",
    "Family",
    "GoldArguments",
    "GoldTask",
    "answer",
    "attributes",
    "bayes_accuracy",
    "cyclic",
    "demonstration",
    "label_distribution",
    "make_arguments",
    "parse",
    "preference",
    "render",
    "scale",
    "split_of",
    "stated_content",
    "typical_demonstration",
    "utility",
]
