"""Wrong inputs: command lines, each with the value that its one-line message must name.

File names are those of wrong_files.py; commands run in their folder, without a GPU and without the Hub. NAME=VALUE
before a command sets its environment; SERVER is a judge's server with the key "right" and one model, "judge".
"""

from typing import NamedTuple


class Case(NamedTuple):
    """`late`: the error can be detected only after a tokenizer is loaded, an epoch planned or a server contacted."""

    line: str
    value: str
    late: bool = False


def late(line, value):
    return Case(line, value, late=True)


DATA = "select dataset.path="
SCORES = "select dataset.path=good.jsonl scores=scores/"
SCORER = "select cluster=none dataset.path=good.jsonl scorer.path=models/"
TRAIN = "train cluster=none dataset.path=good.jsonl scorer.path=models/good model.path=models/good tracker=none "
REFERENCE = "evaluate tracker=none model=models/good "
PAIR = "evaluate evaluator=pairwise tracker=none model=models/good baseline=models/good evaluator.max_new_tokens=8 "
JUDGE = PAIR + "prompts=prompts/good.jsonl "
SELECT = "select dataset.path=good.jsonl scores=scores/good.csv cluster=none tracker.mode=online"
ACCOUNT = f"WANDB_API_KEY={'canary' * 7}"
IMPORT = "evaluate evaluator=pairwise tracker=none judgements=judgements/"
AGREE = "agreement scores/good.csv "

COMMAND_LINE = [
    Case("frobnicate", "frobnicate"),
    Case("select pct", "'pct'"),
    Case("select =5", "=5"),
    Case("select 'pct=[1'", "[1"),
    Case("select selectoin=lp", "selectoin"),
    Case("select selection.budgt=paper", "selection.budgt"),
    Case("select scorer.recipe.epoch=3", "scorer.recipe.epoch"),
    Case("select trainer.foo=1", "trainer.foo"),
    Case("select selection=lpp", "selection=lpp"),
    Case("select selection=lp_app,random", "lp_app,random"),
    Case("select scorer=tinny", "scorer=tinny"),
    Case("select dataset=alpacca", "dataset=alpacca"),
    Case("select cluster=k_means", "cluster=k_means"),
    Case("select tracker=wandbb", "tracker=wandbb"),
    Case("select trainer=gpuu", "trainer=gpuu"),
    Case("train model=opt-350", "model=opt-350"),
    Case("train adapter=loraa", "adapter=loraa"),
    Case("train optimizer=sgd", "optimizer=sgd"),
    Case("evaluate judge=gpt4", "judge=gpt4"),
    Case("evaluate evaluator=pairwize", "evaluator=pairwize"),
    Case("select judge.api_key=sk-canary", "api_key"),
    Case("evaluate 'judge.request={api_key: sk-canary}'", "api_key"),
    Case("evaluate evaluator=pairwise evaluator.max_new_token=12", "max_new_token: unknown option"),
    Case("select +hf_token=hf_canary", "hf_token"),
    Case("evaluate judge.base_url=http://me:secret@h/v1", "http://...@h"),
    Case("evaluate prompts=https://me:secret@h/p.jsonl", "https://...@h"),
]

RANGES = [
    *[Case(f"select pct={pct}", f"pct={pct}") for pct in ("0", "-1", "101", "nan", "inf", "ten", "")],
    Case("select 'pct=[1,2]'", "pct=[1, 2]"),
    Case("select pct=null", "pct=null"),
    Case("select pct=0.001", "pct=0.001"),
    *[Case(f"select seed={seed}", f"seed={seed}") for seed in ("abc", "-1", "1.5", "4294967296")],
    *[Case(f"select dataset.limit={n}", f"dataset.limit={n}") for n in ("0", "-5", "1.5", "many")],
    Case("select dataset.limit=true", "dataset.limit=True"),
    Case("select dataset.skip=-1", "dataset.skip=-1"),
    Case("select dataset.skip=x", "dataset.skip=x"),
    Case("select dataset.skip=3000", "dataset.skip=3000"),
    Case("select dataset.synthetic.rows=many", "rows=many"),
    Case("select dataset.synthetic.wrong=2", "wrong=2"),
    Case("select dataset.split=test", "split=test"),
    Case("select scorer.max_length=1", "max_length=1"),
    Case("select scorer.max_length=long", "max_length=long"),
    Case("select scorer.max_length=100000", "max_length=100000"),
    Case("select scorer.template=vicuna", "template=vicuna"),
    Case("select scorer.trust_remote_code=maybe", "trust_remote_code=maybe"),
    Case("select scorer.recipe.epochs=0", "recipe.epochs=0"),
    Case("select scorer.recipe.epochs=2.5", "recipe.epochs=2.5"),
    Case("select scorer.recipe.epochs=true", "recipe.epochs=True"),
    Case("select scorer.recipe.epochs=1 selection=lp", "recipe.epochs=1"),
    Case("select scorer.recipe.batch_size=0", "recipe.batch_size=0"),
    Case("select scorer.recipe.learning_rate=0", "recipe.learning_rate=0"),
    Case("select scorer.recipe.learning_rate=fast", "recipe.learning_rate=fast"),
    Case("select scorer.recipe.learning_rate=nan", "recipe.learning_rate=nan"),
    Case("select scorer.recipe.learning_rate=inf", "recipe.learning_rate=inf"),
    Case("select scorer.recipe.warmup=1", "recipe.warmup=1"),
    Case("select scorer.recipe.schedule=zigzag", "recipe.schedule=zigzag"),
    Case("select scorer.recipe.max_grad_norm=0", "recipe.max_grad_norm=0"),
    Case("select scorer.train_fraction=2", "scorer.train_fraction=2"),
    Case("select scorer.stop=soon", "scorer.stop=soon"),
    Case("select scorer.stop_bound=1", "scorer.stop_bound=1"),
    Case("select scorer.stop_rows=3", "scorer.stop_rows=3"),
    Case("select scorer.tiny.layers=0", "tiny.layers=0"),
    Case("select scorer.tiny.layers=two", "tiny.layers=two"),
    Case("select scorer.tiny.heads=5", "tiny.heads=5"),
    Case("select train_tokens=0", "train_tokens=0"),
    Case("select train_tokens=many", "train_tokens=many"),
    Case("select score_tokens=-5", "score_tokens=-5"),
    Case("select compile=maybe", "compile=maybe"),
    Case("select activation_checkpointing=maybe", "activation_checkpointing=maybe"),
    Case("select trainer=gpu", "trainer.accelerator=gpu"),
    Case("train trainer=gpu", "trainer.accelerator=gpu"),
    Case("evaluate model=models/good trainer=gpu", "trainer.accelerator=gpu"),
    Case("select trainer.accelerator=tpu", "trainer.accelerator=tpu"),
    Case("select trainer.devices=0", "trainer.devices=0"),
    Case("select trainer.devices=many", "trainer.devices=many"),
    Case("select trainer.num_nodes=0", "trainer.num_nodes=0"),
    Case("select trainer.precision=16-mixed", "trainer.precision=16-mixed"),
    late(TRAIN + "trainer.strategy=magic", "trainer.strategy=magic"),
    late(TRAIN + "+trainer.foo=1", "'foo'"),
    Case("select 'optimizer.betas=[2,2]'", "betas=[2, 2]"),
    Case("select optimizer.eps=-1", "eps=-1"),
    Case("select +optimizer.momentum=1", "momentum=1"),
    Case("train optimizer=adamw8bit trainer=fsdp", "optimizer=adamw8bit"),
    Case("train adapter=lora adapter.merge=maybe", "adapter.merge=maybe"),
    Case("train adapter=qlora trainer=fsdp", "adapter=qlora"),
    Case("select tracker.mode=sometimes", "tracker.mode=sometimes"),
    Case("select cache_dir=/proc/nowhere", "cache_dir=/proc/nowhere"),
    Case("select cache_dir=good.jsonl", "good.jsonl"),
    Case("select hydra.run.dir=/proc/nowhere", "/proc/nowhere"),
    Case("select hydra.run.dir=a-file", "a-file"),
    Case("select selection.bucket=middle", "selection.bucket=middle"),
    Case("select selection.budget=cheap", "selection.budget=cheap"),
    Case("select selection.allocation=fair", "selection.allocation=fair"),
    Case("select selection.length=equal", "selection.length=equal"),
    Case("select selection.duplicates=hide", "selection.duplicates=hide"),
    Case("select selection.known=hide", "selection.known=hide"),
    Case("select selection.known_level=low", "selection.known_level=low"),
    Case("select selection.rising=hide", "selection.rising=hide"),
    Case("select selection=lp selection.budget=paper selection.known=drop", "known=drop"),
    Case("select selection=s2l selection.trajectory_clusters=0", "trajectory_clusters=0"),
    Case("select selection=combine", "selection.combine"),
    Case("select selection=combine 'selection.combine={lp: 0}'", "selection.combine.lp=0"),
    Case("select selection=combine 'selection.combine={k_center: 1}'", "selection.combine=k_center"),
    Case("select selection=combine 'selection.combine={lp_apq: 1}'", "selection.combine=lp_apq"),
    Case("select selection.clusters=all", "selection.clusters=all"),
    Case("select selection.epochs=-1", "selection.epochs=-1"),
    Case("select selection.pct=0", "pct=0"),
    Case("select selection.basis=loss", "selection.basis=loss"),
    Case("select selection=lp selection.budget=paper selection.bucket=low", "pct=10"),
    Case("select selection=lp selection.budget=paper selection.length=matched", "length=matched"),
    Case("select selection=score_column", "selection=score_column"),
    Case("select selection=score_column selection.column=reward", "selection.column=reward"),
    Case("select selection=cluster_random cluster=none", "cluster=none"),
    Case("select cluster=column cluster.column=nowhere", "cluster.column=nowhere"),
    Case("select cluster=column dataset.path=good.jsonl", "dataset good"),
    Case("select cluster=kmeans cluster.n_clusters=0", "cluster.n_clusters=0"),
    Case("select cluster=kmeans cluster.n_clusters=many", "cluster.n_clusters=many"),
    Case("select cluster=kmeans cluster.embedder=./nowhere", "cluster.embedder=./nowhere"),
    Case("select scores_key=a", "scores_key=a"),
]

ROWS = [
    Case(DATA + "nowhere.jsonl", "nowhere.jsonl"),
    Case(DATA + "nowhere", "dataset.path=nowhere"),
    Case(DATA + "/etc/passwd", "/etc/passwd"),
    Case(DATA + "hidden", "dataset.path=hidden"),
    Case(DATA, "dataset.path="),
    Case(DATA + "binary.xyz", "binary.xyz"),
    Case(DATA + "a.tar.gz", "a.tar.gz"),
    Case(DATA + "good.parquet.gz", "good.parquet.gz"),
    Case(DATA + "one.jsonl", "of 1 rows"),
    *[
        Case(DATA + name, name)
        for name in ("empty.jsonl", "blank.jsonl", "empty-list.json", "header.csv", "empty.csv", "empty.parquet")
    ],
    Case(DATA + "half.jsonl", "half.jsonl, line 24"),
    Case(DATA + "half-in-the-middle.jsonl", "line 1"),
    Case(DATA + "words.jsonl", "words.jsonl, line 1"),
    Case(DATA + "nul.jsonl", "nul.jsonl, line 1"),
    Case(DATA + "deep.jsonl", "deep.jsonl, line 1"),
    Case(DATA + "digits.jsonl", "digits.jsonl, line 1"),
    *[Case(DATA + f"{name}.jsonl", f"{name}.jsonl, line 1: a row must be") for name in ("list", "number", "null")],
    *[
        Case(DATA + name, f"{name}, line {line}: not UTF-8")
        for name, line in [
            ("utf16.jsonl", 1),
            ("utf32.jsonl", 1),
            ("latin1.jsonl", 1),
            ("binary.jsonl", 1),
            ("binary.json", 1),
            ("binary.csv", 1),
            ("latin1.csv", 2),
            ("utf16.csv", 1),
            ("gzip-in-gzip.jsonl.gz", 1),
        ]
    ],
    *[
        Case(DATA + name, name)
        for name in (
            "deep.json",
            "digits.json",
            "object.json",
            "lines.json",
            "cut.json",
            "trailing.json",
            "empty.json",
            "text.json",
        )
    ],
    Case(DATA + "mixed.json", "mixed.json, row 2"),
    Case(DATA + "surrogate.jsonl", "column instruction: contains half of a surrogate pair"),
    Case(DATA + "unknown-columns.jsonl", "frage, antwort"),
    Case(DATA + "only-input.jsonl", "instruction, input"),
    Case(DATA + "one-row-without.jsonl", "line 3: columns instruction: not a known form"),
    Case(DATA + "list-in-text.jsonl", "found list"),
    Case(DATA + "object-in-text.jsonl", "found dict"),
    Case(DATA + "bytes.parquet", "found bytes"),
    Case(DATA + "roles.jsonl", "'wizard'"),
    Case(DATA + "sharegpt.jsonl", "'bot'"),
    Case(DATA + "no-turns.jsonl", "an empty list"),
    Case(DATA + "text-for-turns.jsonl", "'Hello'"),
    Case(DATA + "turn-without-content.jsonl", "column messages"),
    Case(DATA + "ragged.csv", "ragged.csv, line 3: 1 fields"),
    Case(DATA + "wide.csv", "wide.csv, line 2: 3 fields"),
    Case(DATA + "quote.csv", "quote.csv, line 2"),
    Case(DATA + "after-quote.csv", "after-quote.csv, line 2"),
    Case(DATA + "gigantic.csv", "gigantic.csv, line 2"),
    Case(DATA + "twice.csv", "2 columns are named 'output'"),
    Case(DATA + "twice.parquet", "2 columns are named 'output'"),
    *[
        Case(DATA + f"{kind}.jsonl.{ending}", f"{kind}.jsonl.{ending}")
        for kind in ("plain", "cut", "broken")
        for ending in ("gz", "xz", "zst")
    ],
    Case(DATA + "gigantic.jsonl.gz", "gigantic.jsonl.gz, line 1: a value of more than 64 MiB"),
    Case(DATA + "bomb.json.zst", "bomb.json.zst: 14,123 bytes expand to 268,697,600 or more"),
    Case(DATA + "gigantic.json.xz", "gigantic.json.xz, row 1: a value of more than 64 MiB"),
    *[
        Case(DATA + name, f"{name}: ")
        for name in (
            "bomb.jsonl.gz",
            "bomb.jsonl.xz",
            "bomb.jsonl.zst",
            "bomb.parquet",
            "repeated.parquet",
        )
    ],
    *[
        Case(DATA + name, f"{name}: not readable as Parquet")
        for name in ("half.parquet", "broken.parquet", "cut.parquet", "binary.parquet")
    ],
    Case(DATA + "good.jsonl 'dataset.columns={question: x}'", "'question': 'x'"),
    Case(DATA + "good.jsonl 'dataset.columns={instruction: x, output: y}'", "column x: missing"),
    Case(DATA + "good.jsonl 'dataset.columns=[a,b]'", "dataset.columns=['a', 'b']"),
    Case(DATA + "good.jsonl dataset.columns=a", "dataset.columns=a"),
    Case(DATA + "good.jsonl dataset.cluster_column=topic", "dataset.cluster_column=topic"),
    Case(DATA + "good.jsonl dataset.skip=24", "dataset.skip=24"),
    Case(DATA + "rewards.jsonl cluster=none selection=score_column selection.column=reward", "'good'"),
    Case(DATA + "topics.jsonl cluster=column cluster.column=topic", "holds a list"),
    Case("select dataset=embedded dataset.path=good.jsonl", "dataset.path=good.jsonl"),
    Case("select dataset=local", "dataset.path"),
]

TABLES = [
    Case(SCORES + "nowhere.csv", "scores=scores/nowhere.csv"),
    Case(SCORES + "folder", "scores=scores/folder/manifest.json: has no format"),
    Case("select dataset.path=good.jsonl scores=17", "scores=17"),
    Case(SCORES + "text.txt", "scores/text.txt"),
    Case(SCORES + "short.csv", "have 20 rows"),
    Case(SCORES + "long.csv", "have 30 rows"),
    Case(SCORES + "far.csv", "index 10 to 123"),
    Case(SCORES + "other-ids.parquet", "has none: these are scores of other rows"),
    Case(SCORES + "no-columns.csv", "no column nll_0"),
    Case(SCORES + "no-first.csv", "no nll_0"),
    Case(SCORES + "gap.csv", "no nll_1"),
    Case(SCORES + "only-first.csv", "these scores have 0"),
    Case(SCORES + "good.csv selection=lp selection.epochs=7", "needs 7 recorded epochs"),
    Case(SCORES + "words.csv", "column nll_0 is string"),
    Case(SCORES + "words.parquet", "column nll_0 is string"),
    Case(SCORES + "zero.csv", "ppl_0 of row 0 is 0.0"),
    Case(SCORES + "negative.csv", "ppl_0 of row 0 is -2.0"),
    Case(SCORES + "twice.csv", "has index 0 twice"),
    Case(SCORES + "negative-index.csv", "column index has values from -23"),
    Case(SCORES + "fraction-index.csv", "column index is double"),
    Case(SCORES + "same-column.csv", "2 columns nll_0"),
    Case(SCORES + "same-column.parquet", "2 columns nll_0"),
    Case(SCORES + "half-clusters.csv", "column cluster is int64 with 1 empty"),
    Case(SCORES + "no-rows.csv", "no-rows.csv: has no rows"),
    *[
        Case(SCORES + name, f"scores=scores/{name}: cannot be read")
        for name in ("empty.csv", "empty.parquet", "binary.csv", "../binary.parquet")
    ],
    *[
        Case(SCORES + name, f"scores=scores/{name}: cannot be read")
        for name in ("empty.npz", "binary.npz", "pickle.npz", "array.npz", "half.npz", "lies.npz")
    ],
    Case(SCORES + "bomb.npz", "scores=scores/bomb.npz"),
    Case(SCORES + "no-id.parquet", "column id is null"),
    Case(SCORES + "two.npz", "has the arrays a, b"),
    Case(SCORES + "two.npz scores_key=c", "scores_key=c"),
    Case(SCORES + "good.csv scores_key=c", "scores_key=c"),
    Case(SCORES + "flat.npz", "of shape (24,)"),
    Case(SCORES + "text.npz", "array ppl is <U1"),
    Case(SCORES + "clusters.npz", "cluster has shape (7,)"),
]

MODELS = [
    Case("select scorer.path=./nowhere", "./nowhere"),
    Case("select scorer.path=a/b/c", "a/b/c"),
    Case("select scorer.path=no-such-org/no-such-model", "no-such-org/no-such-model"),
    Case(SCORER + "empty", "models/empty: has no config.json"),
    Case(SCORER + "no-config", "models/no-config: has no config.json"),
    Case(SCORER + "no-weights", "models/no-weights: has no weights"),
    Case(SCORER + "half-config", "its config.json has no model_type"),
    Case(SCORER + "list-config", "its config.json has no model_type"),
    Case(SCORER + "no-tokenizer", "models/no-tokenizer: has no tokenizer"),
    Case(SCORER + "missing-shard", "model-00001-of-00002.safetensors"),
    Case(SCORER + "pickled", "pickled (pytorch_model.bin)"),
    Case(SCORER + "good scorer.max_length=513", "max_length=513"),
    late(SCORER + "half-tokenizer tracker=none", "models/half-tokenizer"),
    late(SCORER + "few-tokens tracker=none", "tokenizer has 256 tokens, its model 200"),
    late(SCORER + "good scorer.template=chat tracker=none", "template=chat"),
    late(SCORER + "unknown-type tracker=none", "perceiver-of-the-third-kind"),
    late(SCORER + "own-code tracker=none", "models/own-code"),
    late(SCORER + "not-causal tracker=none", "models/not-causal: cannot be loaded"),
    late(SCORER + "half-weights tracker=none", "models/half-weights: cannot be loaded"),
    late(SCORER + "no-header tracker=none", "models/no-header: cannot be loaded"),
    late(SCORER + "other-shape tracker=none", "models/other-shape: cannot be loaded"),
    Case("train model.path=models/no-weights dataset=embedded scorer=tiny", "models/no-weights"),
    Case("train model.path=models/pickled dataset=embedded scorer=tiny", "pytorch_model.bin"),
    Case("train model.max_length=1", "max_length=1"),
]

EVALUATIONS = [
    Case("evaluate tracker=none", "model=null"),
    Case("evaluate model=./nowhere", "./nowhere"),
    *[
        Case(f"evaluate model={name}", f"model={name}")
        for name in ("runs/empty", "runs/half", "runs/deep", "runs/list", "runs/foreign", "models/empty")
    ],
    Case("evaluate model=models/no-weights", "models/no-weights"),
    Case("evaluate model=models/pickled", "pytorch_model.bin"),
    Case(REFERENCE + "baseline=./nowhere", "./nowhere"),
    Case(REFERENCE + "max_length=513", "max_length=513"),
    Case(REFERENCE + "template=vicuna", "template=vicuna"),
    Case(REFERENCE + "evaluator.max_new_tokens=0", "evaluator.max_new_tokens=0"),
    Case(REFERENCE + "evaluator.batch_tokens=many", "evaluator.batch_tokens=many"),
    Case(REFERENCE + "evaluator.resamples=0", "evaluator.resamples=0"),
    Case(REFERENCE + "seed=-1", "seed=-1"),
    Case(REFERENCE + "dataset.path=nowhere.jsonl", "nowhere.jsonl"),
    Case(REFERENCE + "dataset.path=half.jsonl", "half.jsonl, line 24"),
    late(REFERENCE + "evaluator.max_new_tokens=600", "evaluator.max_new_tokens=600"),
    Case("evaluate tracker=none model=gpt@http://127.0.0.1:9/v1", "gpt@http://127.0.0.1:9/v1"),
    Case("evaluate evaluator=pairwise tracker=none model=models/good", "baseline=null"),
    Case(PAIR, "prompts=null"),
    Case(PAIR + "prompts=nowhere", "prompts=nowhere"),
    Case(PAIR + "prompts=nowhere.jsonl", "prompts=nowhere.jsonl"),
    Case(PAIR + "prompts=prompts/text.txt", "prompts/text.txt"),
    Case(PAIR + "prompts=prompts/empty.jsonl", "prompts/empty.jsonl"),
    Case(PAIR + "prompts=prompts/silent.jsonl", "row 0: prompt: has no text"),
    Case(PAIR + "prompts=prompts/columns.jsonl", "columns=question"),
    Case(PAIR + "prompts=prompts/number.jsonl", "found int '3'"),
    Case(PAIR + "prompts=prompts/half.jsonl", "half.jsonl, line 1"),
    Case(PAIR + "prompts=prompts/ids.jsonl", "the id ids/a is not unique"),
    Case(PAIR + "'prompts=[]'", "prompts=[]"),
    Case(PAIR + "'prompts=[prompts/good.jsonl,prompts/good.jsonl]'", "2 sets are named good"),
    Case(PAIR + "prompts=good prompts_dir=nowhere", "prompts_dir=nowhere"),
    Case(PAIR + "prompts=http://127.0.0.1:9/p.jsonl", "127.0.0.1:9/p.jsonl"),
    Case(PAIR + "prompts=http://127.0.0.1:9/p.txt", "127.0.0.1:9/p.txt"),
    Case(PAIR + "prompts=../../../etc/passwd", "etc/passwd"),
    Case(JUDGE + "evaluator.limit=0", "limit=0"),
    Case(JUDGE + "evaluator.temperature=-1", "evaluator.temperature=-1"),
    Case(JUDGE + "evaluator.top_p=0", "evaluator.top_p=0"),
    Case(JUDGE + "evaluator.resamples=none", "evaluator.resamples=none"),
    Case(JUDGE + "judge=reference judge.measure=bleu", "judge.measure=bleu"),
    late(JUDGE + "judge=reference", "none of the 2 prompts has a reference answer"),
    late(JUDGE + "judge=human judge.question=' '", "judge.question: is empty"),
    Case(JUDGE + "judge=hf", "judge.model.path"),
    late(JUDGE + "judge=hf judge.model.path=./nowhere", "./nowhere"),
    late(JUDGE + "judge=hf judge.model.path=models/good", "template=chat"),
    late(JUDGE, "OPENAI_API_KEY is not set"),
    late(JUDGE + "judge.base_url=http://127.0.0.1:9/v1 judge.max_retries=0", "127.0.0.1:9"),
    Case(JUDGE + "judge.base_url=ftp://x", "judge.base_url=ftp://x"),
    Case(JUDGE + "judge.prompt=nowhere", "judge.prompt=nowhere"),
    Case(JUDGE + "judge.prompt=judge-without-places.txt", "judge-without-places.txt"),
    Case(JUDGE + "judge.prompt=judge-latin1.txt", "judge-latin1.txt"),
    Case(JUDGE + "'judge.orders=[sideways]'", "sideways"),
    Case(JUDGE + "judge.attempts=0", "judge.attempts=0"),
    Case(JUDGE + "judge.concurrency=0", "judge.concurrency=0"),
    Case(JUDGE + "judge.timeout=long", "judge.timeout=long"),
    Case(JUDGE + "judge.max_retries=-1", "judge.max_retries=-1"),
    Case(JUDGE + "judge.max_cost=1", "judge.max_cost=1"),
    Case(JUDGE + "judge.prompt_price=-1", "judge.prompt_price=-1"),
    late(JUDGE.replace("model=models/good", "model=gpt@http://127.0.0.1:9/v1", 1), "127.0.0.1:9"),
    Case(IMPORT + "nowhere.json", "judgements/nowhere.json"),
    Case(IMPORT + "text.txt", "judgements/text.txt"),
    Case(IMPORT + "empty.json", "judgements/empty.json"),
    Case(IMPORT + "half.json", "judgements/half.json, row"),
    Case(IMPORT + "no-preference.json", "no column preference or verdict"),
    Case(IMPORT + "nothing.json", "1 rows, none with a verdict"),
    Case(IMPORT + "no-prompt.json", "no id and no instruction"),
    Case(IMPORT + "words.json", "'maybe'"),
    Case(IMPORT + "far.json", "preference 7"),
    Case(IMPORT + "twice.json", "two verdicts by the judge on y for the same prompt, 'a'"),
    Case(IMPORT + "baselines.json", "two baselines, x and z"),
    Case(IMPORT + "orders.json", "3 values in column order (a, b, c)"),
    Case(IMPORT + "chars.json", "model_chars=many"),
    Case("evaluate evaluator=lm_eval tracker=none model=models/good", "tasks=null"),
    Case("evaluate evaluator=lm_eval tracker=none 'tasks=[x]'", "model=null"),
    Case("evaluate evaluator=lm_eval 'tasks=[x]' evaluator.limit=0", "evaluator.limit=0"),
    Case(
        "evaluate evaluator=lm_eval 'tasks=[x]' evaluator.include_path=no",
        "include_path=no",
    ),
]

FURTHER = [
    Case("agreement", "TABLE"),
    Case("agreement scores/good.csv", "scores/good.csv: is only one table"),
    Case(AGREE + "nowhere.csv", "nowhere.csv"),
    Case(AGREE + "scores/short.csv", "has 20 rows"),
    Case(AGREE + "scores/far.csv", "has index 10"),
    Case(AGREE + "scores/words.csv", "column nll_0 is string"),
    Case(AGREE + "scores/two.npz:c", "scores_key=c"),
    Case(AGREE + "scores/array.npz", "scores/array.npz: cannot be read"),
    Case(AGREE + "scores/bomb.npz", "scores/bomb.npz"),
    Case(AGREE + "runs/empty", "runs/empty"),
    Case(AGREE + "runs/deep", "runs/deep"),
    Case(AGREE + "runs/no-scores", "runs/no-scores"),
    Case(AGREE + "runs/lost-scores", "nowhere.parquet"),
    Case(AGREE + "scores/good.csv --pct ten", "--pct: ten"),
    Case(AGREE + "scores/good.csv --pct 0", "pct=0.0"),
    Case(AGREE + "scores/good.csv --clusters nowhere.csv", "--clusters=nowhere.csv"),
    Case(AGREE + "scores/good.csv --clusters scores/good.csv", "has no column cluster"),
    Case(AGREE + "scores/good.csv --clusters binary.csv", "--clusters=binary.csv"),
    Case(AGREE + "scores/good.csv --wrong", "--wrong"),
    Case(AGREE + "scores/good.csv --out a-file/x", "a-file/x"),
    Case("votes", "FILE"),
    Case("votes nowhere.json", "nowhere.json"),
    Case("votes hidden", "hidden"),
    *[
        Case(f"votes votes/{name}.json", f"votes/{name}.json: is not a file of votes")
        for name in ("half", "deep", "binary", "list", "nameless")
    ],
    Case("votes votes/choice.json", '"both"'),
    Case("votes votes/time.json", '"yesterday"'),
    Case("votes votes/far.json --key votes/key.json", "pair 7, but the page has 1"),
    Case("votes votes/good.json --key nowhere.json", "--key=nowhere.json"),
    *[
        Case(f"votes votes/good.json --key votes/{name}-key.json", f"votes/{name}-key.json")
        for name in ("bad", "odd", "deep")
    ],
    Case("votes votes/other-page.json --key votes/key.json", "page q"),
    Case("votes votes/none.json --key votes/key.json", "votes/none.json"),
    Case("votes votes/skipped.json --key votes/key.json", "votes/skipped.json"),
    Case("report", "RUN"),
    Case("report nowhere", "nowhere"),
    Case("report good.jsonl", "good.jsonl"),
    *[Case(f"report runs/{name}", f"runs/{name}: no finished run") for name in ("empty", "half", "deep", "foreign")],
    Case("report runs --out report-in-the-way", "report-in-the-way"),
    Case("report runs --out a-file", "a-file"),
    Case("publish", "RUN"),
    *[
        Case(f"publish {name}", f"{name}: not a finished run")
        for name in ("nowhere", "runs/empty", "runs/half", "runs/deep", "runs/list", "runs/foreign", "runs/no-scores")
    ],
    Case("publish runs/lost-subset", "nowhere.jsonl: no longer exists"),
    Case("publish runs/no-license", "dataset mine"),
    Case("publish runs/no-fields --license mit", "result.json: is not complete"),
    Case("publish runs/lost-subset --too x", "--too x"),
]

LONG = "x" * 300 + ".jsonl"
OUT_OF_REACH = [
    Case(DATA + "locked-good.jsonl", "locked-good.jsonl: "),
    Case(DATA + "locked-good.parquet", "locked-good.parquet: "),
    Case(DATA + "locked/good.jsonl", "locked/good.jsonl: "),
    Case(DATA + "locked", "locked"),
    Case(DATA + "loop.jsonl", "loop.jsonl"),
    Case(DATA + "dangling.jsonl", "dangling.jsonl"),
    Case(DATA + "device.jsonl", "device.jsonl: is not a regular file"),
    Case(DATA + "folder.jsonl", "folder.jsonl"),
    Case(DATA + "pipe.jsonl", "pipe.jsonl: is not a regular file"),
    Case(DATA + "good.jsonl/x.jsonl", "good.jsonl/x.jsonl"),
    Case(DATA + LONG, f"{LONG}: File name too long"),
    *[
        Case(f"select dataset.path=good.jsonl scores={name}", f"{name}")
        for name in ("locked-good.csv", "locked-good.parquet", "locked-good.npz", "scores/locked")
    ],
    Case(f"select dataset.path=good.jsonl scores={LONG}", f"{LONG}: File name too long"),
    Case("select dataset.path=good.jsonl scores=pipe.jsonl", "pipe.jsonl"),
    Case(SCORER + "locked", "models/locked"),
    Case(SCORER + "locked-config", "models/locked-config"),
    late(SCORER + "locked-weights tracker=none", "models/locked-weights"),
    Case(f"select scorer.path=./{LONG}", f"{LONG}: File name too long"),
    Case("select dataset.path=good.jsonl cache_dir=read-only/x", "read-only/x"),
    Case(SCORER + "good cache_dir=read-only tracker=none", "read-only"),
    Case("select hydra.run.dir=read-only/x", "read-only/x"),
    Case("select hydra.run.dir=read-only", "read-only"),
    Case("evaluate model=runs/locked", "runs/locked"),
    Case("evaluate model=models/locked", "models/locked"),
    Case(PAIR + "prompts=locked-good.jsonl", "locked-good.jsonl"),
    Case(PAIR + "prompts=locked/good.jsonl", "locked/good.jsonl"),
    Case(PAIR + "prompts=pipe.jsonl", "pipe.jsonl"),
    Case(PAIR + "prompts=good prompts_dir=locked", "locked"),
    Case(JUDGE + "judge.prompt=locked-prompt.txt", "locked-prompt.txt"),
    Case(JUDGE + "judge.prompt=locked/prompt.txt", "locked/prompt.txt"),
    Case(IMPORT + "../locked-good.jsonl", "locked-good.jsonl"),
    Case(AGREE + "locked-good.csv", "locked-good.csv"),
    Case(AGREE + "scores/locked", "scores/locked"),
    Case(AGREE + "scores/good.csv --out read-only/x", "read-only/x"),
    Case(AGREE + "runs/locked", "runs/locked"),
    Case("votes locked-vote.json", "locked-vote.json: cannot be read (Permission denied)"),
    Case("votes locked/vote.json", "locked/vote.json: cannot be read (Permission denied)"),
    Case("votes votes/good.json --key locked-vote.json", "cannot be read (Permission denied)"),
    Case("report runs/locked", "runs/locked"),
    Case("report runs/no-scores --out read-only/x", "read-only/x"),
    Case("publish runs/locked", "runs/locked"),
]

WITH_KEY = "OPENAI_API_KEY=sk-canary "
SERVICES = [
    late(WITH_KEY + JUDGE + "judge.base_url=SERVER", "rejects the API key (401)"),
    late("MINE=canary " + JUDGE + "judge.base_url=SERVER judge.key_env=MINE", "rejects the API key (401)"),
    late(JUDGE + "judge.base_url=SERVER", "rejects the API key (401)"),
    late("OPENAI_API_KEY=right " + JUDGE + "judge.base_url=SERVER judge.model=other", "no model other"),
    Case(JUDGE + "judge.request=7", "judge.request=7"),
    Case(JUDGE + "judge.request=warm", "judge.request=warm"),
    late(JUDGE + "judge.base_url=http://nowhere.invalid/v1 judge.max_retries=0", "nowhere.invalid"),
    late(
        WITH_KEY + JUDGE.replace("model=models/good", "model=m@SERVER judge=human", 1),
        "rejects the API key (401)",
    ),
    late(JUDGE.replace("model=models/good", "model=m@http://nowhere.invalid/v1", 1), "nowhere.invalid"),
    Case(SELECT, "tracker.mode=online: there is no W&B account"),
    Case(f"{ACCOUNT} WANDB_BASE_URL=http://127.0.0.1:9 {SELECT}", "127.0.0.1:9 does not respond"),
    Case(f"{ACCOUNT} WANDB_BASE_URL=http://nowhere.invalid {SELECT}", "http://nowhere.invalid"),
    Case(f"{ACCOUNT} WANDB_BASE_URL=nowhere {SELECT}", "nowhere does not respond"),
    Case("select dataset.path=no-such/rows", "no-such/rows"),
]

CASES = [*COMMAND_LINE, *RANGES, *ROWS, *TABLES, *MODELS, *EVALUATIONS, *FURTHER, *OUT_OF_REACH, *SERVICES]
