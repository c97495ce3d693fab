"""Plant bugs one by one and see that a test turns red: python tests/audit/plant.py [word]

Each bug is a change of source text, made in a copy of the project; the named test file must fail
there. A bug that survives ends the program with code 1, and so does a text that no longer stands in
the source. With a word, only bugs whose name or file holds it. About twenty minutes in all; no part
of ./test.sh, which only checks that every text still stands where this list says.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

# name, file, what stands there, what the bug makes of it, the test file that must catch it
BUGS = [
    ("targets shifted by two", "minivlm/loading/batches.py", "row_t[1:], IGNORE_INDEX)",
     "row_t.roll(-1)[1:], IGNORE_INDEX)", "tests/loading/test_batches.py"),
    ("targets not shifted", "minivlm/loading/batches.py", "torch.tensor(answer[1:]), row_t[1:]",
     "torch.tensor(answer[:-1]), row_t[:-1]", "tests/loading/test_batches.py"),
    ("answer mask inverted", "minivlm/loading/batches.py", "torch.where(torch.tensor(answer[1:])",
     "torch.where(~torch.tensor(answer[1:])", "tests/loading/test_batches.py"),
    ("questions trained too", "minivlm/conversation.py", "put(tokenizer.encode(text.strip()))",
     "put(tokenizer.encode(text.strip()), answer=True)", "tests/test_conversation.py"),
    ("end of answer not trained", "minivlm/conversation.py", "put([tokenizer.end], answer=True)",
     "put([tokenizer.end])", "tests/test_conversation.py"),
    ("special tokens out of user text", "minivlm/tokenizer.py",
     "self.encoding.encode_ordinary(text)", 'self.encoding.encode(text, allowed_special="all")',
     "tests/test_tokenizer.py"),
    ("causal mask off by one", "minivlm/transformer.py", "keys <= positions", "keys < positions",
     "tests/test_transformer.py"),
    ("prefix looks ahead", "minivlm/transformer.py", "(keys < prefix", "(keys <= prefix",
     "tests/test_transformer.py"),
    ("text attends both ways", "minivlm/gpt.py", "block(x, causal=plain", "block(x, causal=False",
     "tests/test_gpt.py"),
    ("cache written one place late", "minivlm/transformer.py",
     "self.k[layer][self.rows, positions]", "self.k[layer][self.rows, positions.roll(1, 0)]",
     "tests/test_generate.py"),
    ("patches in column order", "minivlm/vit.py", "self.patch(images).flatten(2)",
     "self.patch(images).mT.flatten(2)", "tests/test_vit.py"),
    ("features of the last layer", "minivlm/vit.py", "+ 1 + self.config.feature_layer]",
     "+ 2 + self.config.feature_layer]", "tests/test_vit.py"),
    ("class token among the features", "minivlm/vit.py", "return x[:, 1:]  ", "return x[:, :-1]  ",
     "tests/test_vit.py"),
    ("image features in wrong order", "minivlm/vlm.py", "img_emb.to(emb.dtype)",
     "img_emb.flip(1).to(emb.dtype)", "tests/test_vlm.py"),
    ("pictures given to the wrong rows", "minivlm/vlm.py", "img_emb.to(emb.dtype)",
     "img_emb.flip(0).to(emb.dtype)", "tests/test_vlm.py"),
    ("temperature not clamped", "minivlm/clip.py", "self.log_scale.clamp_(0, MAX_LOGIT_SCALE)",
     "pass", "tests/test_clip.py"),
    ("one direction of InfoNCE", "minivlm/losses.py",
     "(F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2",
     "F.cross_entropy(logits, diagonal)", "tests/test_losses.py"),
    ("plain accumulation for CLIP", "minivlm/clip.py",
     "loss = clip_loss(img_z, txt_z, scale)\n",
     "loss = clip_loss(img_z[:2], txt_z[:2], scale)\n", "tests/test_clip.py"),
    ("text feature at the last column", "minivlm/clip.py", "lengths - 1])", "T - 1])",
     "tests/test_clip.py"),
    ("vectors not of unit length", "minivlm/clip.py",
     "F.normalize(self.img_proj(self.vit.pool(images)).float(), dim=-1)",
     "self.img_proj(self.vit.pool(images)).float()", "tests/test_clip.py"),
    ("log-probabilities summed over pads", "minivlm/losses.py",
     "return logp.masked_fill(targets == IGNORE_INDEX, 0.0)", "return logp - 1e-3",
     "tests/test_losses.py"),
    ("weight decay on biases and norms", "minivlm/optim.py",
     '{"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}',
     '{"params": [p for p in rest if p.ndim < 2], "weight_decay": weight_decay}',
     "tests/test_optim.py"),
    ("schedule off at step 0", "minivlm/optim.py", "return (step + 1) / warmup",
     "return step / warmup", "tests/test_optim.py"),
    ("random generator not restored", "minivlm/running/checkpoint.py",
     'torch.set_rng_state(state["rng"]["torch"])', "pass", "tests/running/test_checkpoint.py"),
    ("optimizer not restored", "minivlm/running/checkpoint.py",
     'optimizer.load_state_dict(state["optimizer"])', "pass", "tests/scripts/test_resume.py"),
    ("means that forget the steps before a stop", "minivlm/running/checkpoint.py",
     'meter.load_state_dict(state["meter"])', "pass", "tests/scripts/test_resume.py"),
    ("a checkpoint written in place", "minivlm/running/checkpoint.py",
     'temporary = path.with_suffix(".tmp")', "temporary = path", "tests/scripts/test_resume.py"),
    ("the last checkpoint written before the best", "train_sft.py", "[log.best, log.ckpt] if",
     "[log.ckpt, log.best] if", "tests/scripts/test_resume.py"),
    ("a bad gradient applied", "minivlm/optim.py", "if math.isfinite(norm):", "if True:",
     "tests/test_optim.py"),
    ("GPT trained along with the projector", "train_align.py", "model.requires_grad_(False)",
     "pass", "tests/scripts/test_train_scripts.py"),
    ("micro-batches weigh alike", "train_sft.py", "* at.sum() / n_tokens", "/ cfg.grad_accum",
     "tests/scripts/test_train_scripts.py"),
    ("captions' micro-batches weigh alike", "train_caption.py",
     "part.targets[at], smoothing) * share", "part.targets[at], smoothing) / cfg.grad_accum",
     "tests/scripts/test_train_scripts.py"),
    ("top-p before the temperature", "minivlm/generate.py", "ordered.softmax(dim=-1)",
     "(ordered * temperature).softmax(dim=-1)", "tests/test_generate.py"),
    ("a stopped row goes on", "minivlm/generate.py", "t is not None and t != stop for t",
     "t is not None for t", "tests/test_generate.py"),
    ("a prefix that is trained", "minivlm/loading/batches.py", "wanted and i >= cut for i", "wanted for i",
     "tests/test_captioner.py"),
    ("a pair as its own negative", "minivlm/captioner.py", "weights.masked_fill_(same, 0)", "pass",
     "tests/test_captioner.py"),
    ("an equal text as a negative", "minivlm/captioner.py", "same = equal_rows(idx) ",
     "same = torch.eye(len(idx), dtype=torch.bool) ", "tests/test_captioner.py"),
    ("judgments corrected the wrong way", "data/capfilt.py", "logits - trained_on + share",
     "logits + trained_on - share", "tests/data/test_capfilt.py"),
    ("a false answer let through", "minivlm/engine/checks.py", "if False in verdicts:", "if False:",
     "tests/engine/test_instruct.py"),
    ("kept phrasings in dialogues", "minivlm/engine/phrasings.py",
     '(FOLDER / "kept" if held_out else FOLDER)', '(FOLDER / "kept")', "tests/engine/test_instruct.py"),
    ("a false fact behind a right word", "data/quiz.py",
     'return (word,), (*false, *{"yes", "no"} - {word})', 'return (word,), ()',
     "tests/data/test_quiz.py"),
    ("questions about what is hidden", "data/quiz.py", "if whole or make not in DEEP]", "if True]",
     "tests/data/test_quiz.py"),
    ("any answer has the form", "minivlm/evaluation/measure.py", 're.fullmatch(q["form"], ', 're.search("", ',
     "tests/data/test_quiz.py"),
    ("noise on answers", "minivlm/loading/batches.py", "i < vocab_size and not wanted", "i < vocab_size",
     "tests/loading/test_batches.py"),
    ("LLaVA's </s> not trained", "minivlm/conversation.py",
     'put([*encode(" " + value), eos], True)',
     'put(encode(" " + value), True), put([eos], False)', "tests/test_conversation.py"),
    ("a reply that was cut off", "minivlm/engine/teachers.py", 'finish_reason", "") == "length"',
     'finish_reason", "") == "long"', "tests/engine/test_teachers.py"),
    ("reward read at the last column", "minivlm/heads.py", "last_only(lengths, idx.shape[1])",
     "last_only(lengths * 0 + idx.shape[1], idx.shape[1])", "tests/test_heads.py"),
    ("pictures of rows that have stopped", "minivlm/generate.py",
     "of_row[b] for b in rows.tolist()", "of_row[b] for b in range(len(rows))",
     "tests/test_generate.py"),
    ("copies of prompts out of order", "minivlm/generate.py",
     "self.rows.repeat_interleave(n_copies)", "self.rows.repeat(n_copies)",
     "tests/test_generate.py"),
    ("answers that see each other", "minivlm/transformer.py",
     "(keys == 0) | (keys == queries)", "keys >= 0", "tests/test_transformer.py"),
    ("positions that count on over another answer", "minivlm/gpt.py", "(mask.sum(-1)[:, 0] - 1)",
     "torch.arange(T).expand(B, T)", "tests/test_gpt.py"),
    ("pads that fill the context", "minivlm/gpt.py", ".masked_fill(segments < 0, 0)", "",
     "tests/test_gpt.py"),
    ("packed answers scored one token late", "minivlm/heads.py", "at[:, :-1] |=", "at[:, 1:] |=",
     "tests/test_heads.py"),
    ("rows of a part cut short", "minivlm/rollout.py", "T = int(lengths[rows].max())",
     "T = int(lengths[rows].min())", "tests/test_rollout.py"),
    ("rows scored before their end", "minivlm/preferences/rankings.py", "prompt + answer + [end]",
     "prompt + answer", "tests/preferences/test_rankings.py"),
    ("gaps by rank", "minivlm/preferences/rankings.py", "abs(true[i] - true[j]) + 1e-9",
     "abs(rank[i] - rank[j]) + 1e-9", "tests/preferences/test_rankings.py"),
    ("calibration that knows who won", "minivlm/preferences/rankings.py", "(min(i, j), max(i, j))", "(i, j)",
     "tests/preferences/test_rankings.py"),
    ("rollouts scored without their end", "minivlm/rollout.py", "read_row(p, said, end)",
     "read_row(p, said[:-1] or said, end)", "tests/test_rollout.py"),
    ("placeholder drawn as a word", "minivlm/rollout.py", ".masked_fill(no_word, -torch.inf)", "",
     "tests/test_rollout.py"),
    ("log-probabilities at another temperature", "minivlm/rollout.py",
     "logits = (logits / temperature)", "logits = logits", "tests/test_rollout.py"),
    ("facts for the policy too", "minivlm/preferences/prompts.py",
     "return PromptBatch(questions, images, prompts, judged, seed)",
     "return PromptBatch(questions, images, judged, judged, seed)", "tests/test_rollout.py"),
    ("a KL that rewards leaving", "train_ppo.py",
     "kl_estimate(rollout.logp, rollout.ref_logp, cfg.kl)",
     "kl_estimate(rollout.ref_logp, rollout.logp, cfg.kl)", "tests/scripts/test_train_ppo.py"),
    ("a reference that follows", "train_ppo.py", "else copy.deepcopy(policy).requires_grad_(False)",
     "else policy", "tests/scripts/test_train_ppo.py"),
    ("ranks turned round", "train_reward.py", "ranking_loss(scores, ranks, margin)",
     "ranking_loss(-scores, ranks, margin)", "tests/scripts/test_train_ppo.py"),
    ("ratings of another answer", "minivlm/preferences/judge.py", "enumerate(answers, 1)",
     "enumerate(answers[::-1], 1)", "tests/preferences/test_judge.py"),
    ("advantages that cross the pads", "minivlm/rl.py", ".masked_fill(~mask[:, t], 0.0)", "",
     "tests/test_rl.py"),
    ("score on a pad", "minivlm/rl.py", "last_true(mask)] += score", "-1] += score",
     "tests/test_rl.py"),
    ("KL at pads", "minivlm/rl.py", "(-kl_coef * kl).masked_fill(~mask, 0.0)", "-kl_coef * kl",
     "tests/test_rl.py"),
    ("advantages that look backward", "minivlm/rl.py", "in reversed(range(T))", "in range(T)",
     "tests/test_rl.py"),
    ("values of pads", "minivlm/rl.py", "values = values.masked_fill(~mask, 0.0)",
     "values = values.clone()", "tests/test_rl.py"),
    ("a variance over pads", "minivlm/rl.py", "masked_mean((x - mean).square(), mask)",
     "(x - mean).square().mean()", "tests/test_rl.py"),
    ("values clipped around the returns", "minivlm/losses.py",
     "held = old_values + (values - old_values)", "held = returns + (values - returns)",
     "tests/test_rl.py"),
    ("means for sums", "minivlm/losses.py", "/ w.sum(1) if average else total",
     "/ w.sum(1)", "tests/test_dpo.py"),
    ("KL the wrong way round", "minivlm/losses.py", "return -log_ratio", "return log_ratio",
     "tests/test_rl.py"),
    ("clip without the worse of both", "minivlm/losses.py", "torch.minimum(free, held)", "held",
     "tests/test_rl.py"),
    ("left and right swapped", "data/shapes/language.py", '"left of" if a.cell % 3 < b.cell % 3',
     '"left of" if a.cell % 3 > b.cell % 3', "tests/data/test_shapes_data.py"),
    ("hidden objects in captions", "data/shapes/language.py", "    seen = scene.clear\n",
     "    seen = scene.objects\n", "tests/data/test_shapes_data.py"),
    ("a margin without the reference", "minivlm/losses.py",
     "chosen, rejected = chosen_logp - ref_chosen_logp, rejected_logp - ref_rejected_logp",
     "chosen, rejected = chosen_logp, rejected_logp", "tests/test_dpo.py"),
    ("weights left out of the divisor", "minivlm/losses.py", "total / w.sum(1) if average",
     "total / mask.sum(1) if average", "tests/test_dpo.py"),
    ("an adapter merged without its scale", "minivlm/lora.py", "+ scale * B @ A", "+ B @ A",
     "tests/test_lora.py"),
    ("an adapter that is not nothing at the start", "minivlm/lora.py",
     "self.weight.new_zeros(base", "self.weight.new_ones(base", "tests/test_lora.py"),
    ("a reference read with the adapters on", "minivlm/rollout.py",
     "with adapters_off(ref):", "if ref is not None:", "tests/test_rollout.py"),
    ("chosen and rejected swapped", "minivlm/preferences/pairs.py",
     "for k in (1, 2))", "for k in (2, 1))", "tests/scripts/test_train_dpo.py"),
    ("questions with many pairs have the most to say", "minivlm/preferences/pairs.py",
     "if not n or taken[question] <= n:", "if len(out) < n * len(taken):",
     "tests/scripts/test_train_dpo.py"),
    ("token weights one off", "minivlm/preferences/pairs.py", "torch.tensor(marks)",
     "torch.tensor(marks).roll(1)", "tests/scripts/test_train_dpo.py"),
    ("cached figures at the wrong pairs", "minivlm/preferences/pairs.py", "self.logp[part] =",
     "self.logp[start:start + len(part)] =", "tests/scripts/test_train_dpo.py"),
    ("a stale cache taken", "minivlm/preferences/pairs.py", "if not differ:", "if True:",
     "tests/scripts/test_train_dpo.py"),
    ("pairs' micro-batches weigh as whole batches", "train_dpo.py", "(loss * share).backward()",
     "loss.backward()", "tests/scripts/test_train_scripts.py"),
    ("a judge that errs on whole answers", "minivlm/evaluation/raters.py",
     "guess, errs = float(rng.randint(1, 5)), rng.random() < self.error_rate",
     "guess, errs = float(rng.randint(1, 5)), key < chr(48 + int(9 * self.error_rate))",
     "tests/evaluation/test_raters.py"),
    ("one verdict is enough", "minivlm/evaluation/axes.py", "if wins[0] == wins[1] else 0.5", "if wins else 0.5",
     "tests/evaluation/test_axes.py"),
    ("similarities in half precision", "minivlm/losses.py",
     "with torch.autocast(img_z.device.type, enabled=False):", "if True:",
     "tests/test_precision.py"),
    ("scores widened too late", "minivlm/losses.py",
     "at_least_float32(chosen_score) - at_least_float32(rejected_score)",
     "at_least_float32(chosen_score - rejected_score)", "tests/test_precision.py"),
    ("a terminated run that reports success", "minivlm/running/run.py",
     "raise SystemExit(128 + signal.SIGTERM)", "raise SystemExit(0)", "tests/scripts/test_resume.py"),
    ("published positions turned", "minivlm/pretrained/weights.py", "(1, -1, old, old)  ",
     "(1, -1, old, old).mT", "tests/pretrained/test_pretrained.py"),
    ("new tokens likelier than old ones", "minivlm/pretrained/weights.py",
     "wte[:known].mean(0, keepdim=True)", "wte[:1]", "tests/pretrained/test_pretrained.py"),
    ("code in published weights run", "minivlm/pretrained/weights.py", "weights_only=True",
     "weights_only=False", "tests/pretrained/test_pretrained.py"),
    ("word ends not marked", "minivlm/pretrained/tokenizers.py", 'pieces[-1] += "</w>"', "pass",
     "tests/pretrained/test_pretrained.py"),
    ("a norm lost on the way out", "minivlm/pretrained/export.py", 'if c.projector != "llava":',
     'if c.projector == "linear":', "tests/pretrained/test_pretrained.py"),
    ("POPE reads any answer as yes", "minivlm/metrics/figures.py",
     'w in words for w in ("No", "not", "no")', 'w in words for w in ("NO",)',
     "tests/metrics/test_metrics.py"),
]


def copy_project(to: Path) -> None:
    """The project without what git ignores: what has been installed, prepared or trained."""
    skip = shutil.ignore_patterns(
        ".git", ".venv", "runs", "prepared", "prepared[!.]*", "__pycache__", "*.egg-info"
    )  # the folders of data sets, not minivlm/loading/prepared.py
    shutil.copytree(ROOT, to, ignore=skip, dirs_exist_ok=True)


def fails(test: str, file: str = "", old: str = "", new: str = "") -> bool:
    """Whether the test file fails on a copy of the project, with a bug in it or as it is."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy_project(copy)
        if file:
            text = (copy / file).read_text()
            (copy / file).write_text(text.replace(old, new))
        command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", test]
        code = subprocess.run(command, cwd=copy, capture_output=True).returncode
        if code > 1:  # neither passed nor failed: pytest could not run it
            raise RuntimeError(f"pytest ended with {code} on {test}, {file} changed")
        return bool(code)


def main(word: str = "") -> int:
    """Plant every bug whose name or file holds the word; return how many survived.

    A test file that fails without a bug catches nothing: its bugs count as survivors.
    """
    survived, broken = 0, {}
    for name, file, old, new, test in BUGS:
        if word in name or word in file:
            if test not in broken:
                broken[test] = fails(test)
            found = not broken[test] and fails(test, file, old, new)
            survived += not found
            said = "caught" if found else "BROKEN" if broken[test] else "SURVIVED"
            print(f"{said:9s} {name} ({file}; {test})", flush=True)
    return survived


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))
