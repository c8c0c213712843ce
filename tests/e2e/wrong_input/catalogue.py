"""Wrong inputs: a command line, and what its one line must hold: the value at fault, and the remedy.

Names of files are those of wrong_files.py; commands run in their folder, without a GPU and without the Hub. NAME=VALUE
before a command is for its environment; SERVER is a judge's server with a key, "right", and one model, "judge".
"""

from typing import NamedTuple


class Case(NamedTuple):
    """`late` where the mistake can be known only once a tokenizer is read, an epoch is planned or a server is asked."""

    line: str
    value: str
    remedy: str
    late: bool = False


def late(line, value, remedy):
    return Case(line, value, remedy, late=True)


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
CONVERT = "Convert the file: iconv -f ENCODING -t UTF-8."
MEND_ROW = "Mend or remove it."
MEND_FILE = "Mend the file or write it again."
AGAIN = "Fetch or compress it again."
UNPACK = "unpack it yourself and give it uncompressed"

COMMAND_LINE = [
    Case("frobnicate", "frobnicate", "give one of train, select, evaluate"),
    Case("select pct", "'pct'", "not NAME=VALUE"),
    Case("select =5", "=5", "say NAME=VALUE"),
    Case("select 'pct=[1'", "[1", "put quotes around"),
    Case("select selectoin=lp", "selectoin", "did you mean selection"),
    Case("select selection.budgt=paper", "selection.budgt", "did you mean selection.budget"),
    Case("select scorer.recipe.epoch=3", "scorer.recipe.epoch", "did you mean scorer.recipe.epochs"),
    Case("select trainer.foo=1", "trainer.foo", "lpsel select --help lists all"),
    Case("select selection=lpp", "selection=lpp", "did you mean lp or lp_app? give one of buckets,"),
    Case("select selection=lp_app,random", "lp_app,random", "say -m selection=lp_app,random"),
    Case("select scorer=tinny", "scorer=tinny", "did you mean tiny"),
    Case("select dataset=alpacca", "dataset=alpacca", "did you mean alpaca?"),
    Case("select cluster=k_means", "cluster=k_means", "did you mean kmeans?"),
    Case("select tracker=wandbb", "tracker=wandbb", "did you mean wandb?"),
    Case("select trainer=gpuu", "trainer=gpuu", "did you mean gpu"),
    Case("train model=opt-350", "model=opt-350", "did you mean opt-350m"),
    Case("train adapter=loraa", "adapter=loraa", "did you mean lora"),
    Case("train optimizer=sgd", "optimizer=sgd", "give one of adamw, adamw8bit"),
    Case("evaluate judge=gpt4", "judge=gpt4", "give one of hf, human, openai"),
    Case("evaluate evaluator=pairwize", "evaluator=pairwize", "did you mean pairwise?"),
    Case("select judge.api_key=sk-canary", "api_key", "put it into the environment"),
    Case("evaluate 'judge.request={api_key: sk-canary}'", "api_key", "put it into the environment"),
    Case("evaluate evaluator=pairwise evaluator.max_new_token=12", "max_new_token: no such", "mean evaluator.max_new"),
    Case("select +hf_token=hf_canary", "hf_token", "put it into the environment"),
    Case("evaluate judge.base_url=http://me:secret@h/v1", "http://...@h", "keys come from the environment"),
    Case("evaluate prompts=https://me:secret@h/p.jsonl", "https://...@h", "keys come from the environment"),
]

RANGES = [
    *[
        Case(f"select pct={pct}", f"pct={pct}", "must be above 0 and at most 100. For everything, say selection=full.")
        for pct in ("0", "-1", "101", "nan", "inf", "ten", "")
    ],
    Case("select 'pct=[1,2]'", "pct=[1, 2]", "say selection=full"),
    Case("select pct=null", "pct=None", "say selection=full"),
    Case("select pct=0.001", "pct=0.001", "Give at least pct=0.01667"),
    *[Case(f"select seed={seed}", f"seed={seed}", "must be") for seed in ("abc", "-1", "1.5", "4294967296")],
    *[
        Case(f"select dataset.limit={n}", f"dataset.limit={n}", "must be at least 1 row, or null for all")
        for n in ("0", "-5", "1.5", "many")
    ],
    Case("select dataset.limit=true", "dataset.limit=True", "or null for all"),
    Case("select dataset.skip=-1", "dataset.skip=-1", "must be 0 or more rows"),
    Case("select dataset.skip=x", "dataset.skip=x", "must be 0 or more rows"),
    Case("select dataset.skip=3000", "dataset.skip=3000", "Give a data set that has some"),
    Case("select dataset.synthetic.rows=many", "rows=many", "must be a whole number of rows"),
    Case("select dataset.synthetic.wrong=2", "wrong=2", "must be a share from 0 to 1"),
    Case("select dataset.split=test", "split=test", "has train and held_out"),
    Case("select scorer.max_length=1", "max_length=1", "must be at least 2 tokens"),
    Case("select scorer.max_length=long", "max_length=long", "must be a whole number of tokens"),
    Case("select scorer.max_length=100000", "max_length=100000", "give 1024 or less"),
    Case("select scorer.template=vicuna", "template=vicuna", "must be one of alpaca, chat, plain"),
    Case("select scorer.trust_remote_code=maybe", "trust_remote_code=maybe", "must be true or false"),
    Case("select scorer.recipe.epochs=0", "recipe.epochs=0", "must be at least 1"),
    Case("select scorer.recipe.epochs=2.5", "recipe.epochs=2.5", "must be a whole number"),
    Case("select scorer.recipe.epochs=true", "recipe.epochs=True", "must be a whole number"),
    Case("select scorer.recipe.epochs=1 selection=lp", "recipe.epochs=1", "raise it, or choose a rule"),
    Case("select scorer.recipe.batch_size=0", "recipe.batch_size=0", "must be at least 1 row"),
    Case("select scorer.recipe.learning_rate=0", "recipe.learning_rate=0", "must be above 0"),
    Case("select scorer.recipe.learning_rate=fast", "recipe.learning_rate=fast", "must be a number"),
    Case("select scorer.recipe.learning_rate=nan", "recipe.learning_rate=nan", "must be a number"),
    Case("select scorer.recipe.learning_rate=inf", "recipe.learning_rate=inf", "must be a number"),
    Case("select scorer.recipe.warmup=1", "recipe.warmup=1", "from 0 to below 1"),
    Case("select scorer.recipe.schedule=zigzag", "recipe.schedule=zigzag", "must be one of cosine, linear, constant"),
    Case("select scorer.recipe.max_grad_norm=0", "recipe.max_grad_norm=0", "must be above 0"),
    Case("select scorer.train_fraction=2", "scorer.train_fraction=2", "above 0 and at most 1"),
    Case("select scorer.stop=soon", "scorer.stop=soon", "must be stable, or null"),
    Case("select scorer.stop_bound=1", "scorer.stop_bound=1", "above 0 and below 1"),
    Case("select scorer.stop_rows=3", "scorer.stop_rows=3", "at least 20"),
    Case("select scorer.tiny.layers=0", "tiny.layers=0", "at least 1"),
    Case("select scorer.tiny.layers=two", "tiny.layers=two", "must be a whole number"),
    Case("select scorer.tiny.heads=5", "tiny.heads=5", "must be a multiple of twice"),
    Case("select train_tokens=0", "train_tokens=0", "at least 1"),
    Case("select train_tokens=many", "train_tokens=many", "must be a whole number of tokens"),
    Case("select score_tokens=-5", "score_tokens=-5", "at least 1"),
    Case("select compile=maybe", "compile=maybe", "must be true or false"),
    Case("select activation_checkpointing=maybe", "activation_checkpointing=maybe", "must be true or false"),
    Case("select trainer=gpu", "trainer.accelerator=gpu", "say trainer=cpu"),
    Case("train trainer=gpu", "trainer.accelerator=gpu", "say trainer=cpu"),
    Case("evaluate model=models/good trainer=gpu", "trainer.accelerator=gpu", "say trainer=cpu"),
    Case("select trainer.accelerator=tpu", "trainer.accelerator=tpu", "must be one of auto, cpu, gpu, cuda"),
    Case("select trainer.devices=0", "trainer.devices=0", "must be auto, a number of devices"),
    Case("select trainer.devices=many", "trainer.devices=many", "must be auto, a number of devices"),
    Case("select trainer.num_nodes=0", "trainer.num_nodes=0", "at least 1"),
    Case("select trainer.precision=16-mixed", "trainer.precision=16-mixed", "must be auto, 32-true"),
    late(TRAIN + "trainer.strategy=magic", "trainer.strategy=magic", "say trainer=cpu"),
    late(TRAIN + "+trainer.foo=1", "'foo'", "say trainer=cpu"),
    Case("select 'optimizer.betas=[2,2]'", "betas=[2, 2]", "leave out what you changed"),
    Case("select optimizer.eps=-1", "eps=-1", "leave out what you changed"),
    Case("select +optimizer.momentum=1", "momentum=1", "leave out what you changed"),
    Case("train optimizer=adamw8bit trainer=fsdp", "optimizer=adamw8bit", "say optimizer=adamw, or trainer=ddp"),
    Case("train adapter=lora adapter.merge=maybe", "adapter.merge=maybe", "must be true or false"),
    Case("train adapter=qlora trainer=fsdp", "adapter=qlora", "say trainer=ddp, or adapter=none"),
    Case("select tracker.mode=sometimes", "tracker.mode=sometimes", "must be online or offline"),
    Case("select cache_dir=/proc/nowhere", "cache_dir=/proc/nowhere", "give cache_dir=FOLDER or LPSEL_CACHE"),
    Case("select cache_dir=good.jsonl", "good.jsonl", "give cache_dir=FOLDER or LPSEL_CACHE"),
    Case("select hydra.run.dir=/proc/nowhere", "/proc/nowhere", "give hydra.run.dir="),
    Case("select hydra.run.dir=a-file", "a-file", "give hydra.run.dir="),
    Case("select selection.bucket=middle", "selection.bucket=middle", "must be low, mid, high, or null"),
    Case("select selection.budget=cheap", "selection.budget=cheap", "must be exact or paper"),
    Case("select selection.allocation=fair", "selection.allocation=fair", "must be proportional, equal"),
    Case("select selection.length=equal", "selection.length=equal", "must be none or matched"),
    Case("select selection.duplicates=hide", "selection.duplicates=hide", "must be keep or drop"),
    Case("select selection.clusters=all", "selection.clusters=all", "must be shared, rule or none"),
    Case("select selection.epochs=-1", "selection.epochs=-1", "must be a whole number of epochs"),
    Case("select selection.pct=0", "pct=0", "say selection=full"),
    Case("select selection.basis=loss", "selection.basis=loss", "must be perplexity or nll"),
    Case("select selection=lp selection.budget=paper selection.bucket=low", "pct=10", "Say pct=33"),
    Case(
        "select selection=lp selection.budget=paper selection.length=matched", "length=matched", "needs selection.bud"
    ),
    Case("select selection=score_column", "selection=score_column", "Say selection.column=NAME"),
    Case(
        "select selection=score_column selection.column=reward", "selection.column=reward", "Name a column of numbers"
    ),
    Case("select selection=cluster_random cluster=none", "cluster=none", "Leave it out, or name another rule"),
    Case("select cluster=column cluster.column=nowhere", "cluster.column=nowhere", "Name a column of every row"),
    Case("select cluster=column dataset.path=good.jsonl", "data set good", "Say cluster.column=NAME"),
    Case("select cluster=kmeans cluster.n_clusters=0", "cluster.n_clusters=0", "at least 1, or null"),
    Case("select cluster=kmeans cluster.n_clusters=many", "cluster.n_clusters=many", "at least 1, or null"),
    Case("select cluster=kmeans cluster.embedder=./nowhere", "cluster.embedder=./nowhere", "or cluster=none"),
    Case("select scores_key=a", "scores_key=a", "Say which file, too"),
]

ROWS = [
    Case(DATA + "nowhere.jsonl", "nowhere.jsonl", "Check the name and the folder"),
    Case(DATA + "nowhere", "dataset.path=nowhere", "Name a local file or a Hub data set"),
    Case(DATA + "/etc/passwd", "/etc/passwd", "must end in .json"),
    Case(DATA + "hidden", "dataset.path=hidden", "name a file that ends in"),
    Case(DATA, "dataset.path=", "name a file that ends in"),
    Case(DATA + "binary.xyz", "binary.xyz", "must end in .json"),
    Case(DATA + "a.tar.gz", "a.tar.gz", "must end in .json"),
    Case(DATA + "good.parquet.gz", "good.parquet.gz", "must end in .json"),
    Case(DATA + "one.jsonl", "of 1 rows", "Give at least pct=50"),
    *[
        Case(DATA + name, name, "Give a data set that has some")
        for name in ("empty.jsonl", "blank.jsonl", "empty-list.json", "header.csv", "empty.csv", "empty.parquet")
    ],
    Case(DATA + "half.jsonl", "half.jsonl, line 24", MEND_ROW),
    Case(DATA + "half-in-the-middle.jsonl", "line 1", MEND_ROW),
    Case(DATA + "words.jsonl", "words.jsonl, line 1", MEND_ROW),
    Case(DATA + "nul.jsonl", "nul.jsonl, line 1", MEND_ROW),
    Case(DATA + "deep.jsonl", "deep.jsonl, line 1", MEND_ROW),
    Case(DATA + "digits.jsonl", "digits.jsonl, line 1", MEND_ROW),
    *[
        Case(DATA + f"{name}.jsonl", f"{name}.jsonl, line 1: a row must be", 'such as {"instruction"')
        for name in ("list", "number", "null")
    ],
    Case(DATA + "nan.jsonl", "found float 'nan'", "convert it to a string"),
    *[
        Case(DATA + name, f"{name}, line {line}: not UTF-8", CONVERT)
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
        Case(DATA + name, name, MEND_FILE)
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
    Case(DATA + "mixed.json", "mixed.json, line 1", "a row must be a JSON object"),
    Case(DATA + "surrogate.jsonl", "column instruction: half of a surrogate pair", "mend the text"),
    Case(DATA + "unknown-columns.jsonl", "frage, antwort", "Say which is which"),
    Case(DATA + "only-input.jsonl", "instruction, input", "Say which is which"),
    Case(DATA + "semicolons.csv", "instruction;output", "Say which is which"),
    Case(DATA + "one-row-without.jsonl", "line 3: no column output", "see dataset.columns"),
    Case(DATA + "numbers.jsonl", "found int '3'", "convert it to a string"),
    Case(DATA + "list-in-text.jsonl", "found list", "convert it to a string"),
    Case(DATA + "object-in-text.jsonl", "found dict", "convert it to a string"),
    Case(DATA + "bytes.parquet", "found bytes", "convert it to a string"),
    Case(DATA + "roles.jsonl", "'wizard'", "leave the row out"),
    Case(DATA + "sharegpt.jsonl", "'bot'", "leave the row out"),
    Case(DATA + "no-turns.jsonl", "an empty list", "must be a list of turns"),
    Case(DATA + "text-for-turns.jsonl", "'Hello'", "must be a list of turns"),
    Case(DATA + "turn-without-content.jsonl", "column messages", "must have role and content"),
    Case(DATA + "ragged.csv", "ragged.csv, line 3: 1 fields", "Quote fields that hold commas"),
    Case(DATA + "wide.csv", "wide.csv, line 2: 3 fields", "Quote fields that hold commas"),
    Case(DATA + "quote.csv", "quote.csv, line 2", "Mend or remove the row"),
    Case(DATA + "after-quote.csv", "after-quote.csv, line 2", "Mend or remove the row"),
    Case(DATA + "gigantic.csv", "gigantic.csv, line 2", "Mend or remove the row"),
    Case(DATA + "twice.csv", "2 columns 'output'", "rename all but one"),
    Case(DATA + "twice.parquet", "2 columns 'output'", "rename all but one"),
    *[
        Case(DATA + f"{kind}.jsonl.{ending}", f"{kind}.jsonl.{ending}", AGAIN)
        for kind in ("plain", "cut", "broken")
        for ending in ("gz", "xz", "zst")
    ],
    Case(DATA + "gigantic.jsonl.gz", "gigantic.jsonl.gz, line 1: a value of more than 64 MiB", "Split or remove it"),
    Case(DATA + "gigantic.json.xz", "gigantic.json.xz, line 1: a value of more than 64 MiB", "Split or remove it"),
    *[
        Case(DATA + name, f"{name}: ", UNPACK)
        for name in (
            "bomb.jsonl.gz",
            "bomb.jsonl.xz",
            "bomb.jsonl.zst",
            "bomb.json.zst",
            "bomb.parquet",
            "repeated.parquet",
        )
    ],
    *[
        Case(DATA + name, f"{name}: not readable as Parquet", "Write it again.")
        for name in ("half.parquet", "broken.parquet", "cut.parquet", "binary.parquet")
    ],
    Case(DATA + "good.jsonl 'dataset.columns={question: x}'", "'question': 'x'", "must name instruction and output"),
    Case(DATA + "good.jsonl 'dataset.columns={instruction: x, output: y}'", "no column x", "see dataset.columns"),
    Case(DATA + "good.jsonl 'dataset.columns=[a,b]'", "dataset.columns=['a', 'b']", "as in dataset.columns={"),
    Case(DATA + "good.jsonl dataset.columns=a", "dataset.columns=a", "as in dataset.columns={"),
    Case(
        DATA + "good.jsonl dataset.cluster_column=topic", "dataset.cluster_column=topic", "name one of these, or null"
    ),
    Case(DATA + "good.jsonl dataset.skip=24", "dataset.skip=24", "Give a data set that has some"),
    Case(
        DATA + "rewards.jsonl cluster=none selection=score_column selection.column=reward", "'good'", "Name a column of"
    ),
    Case(DATA + "topics.jsonl cluster=column cluster.column=topic", "holds a list", "Name a column of single values"),
    Case("select dataset=embedded dataset.path=good.jsonl", "dataset.path=good.jsonl", "say dataset=local"),
    Case("select dataset=local", "dataset.path", "say dataset.path="),
]

TABLES = [
    Case(SCORES + "nowhere.csv", "scores=scores/nowhere.csv", "Name a scores folder, or a .parquet"),
    Case(SCORES + "folder", "scores=scores/folder/manifest.json: has no format", "and score again"),
    Case("select dataset.path=good.jsonl scores=17", "scores=17", "Name a scores folder, or a .parquet"),
    Case(SCORES + "text.txt", "scores/text.txt", "Give a .parquet, .csv or .npz file"),
    Case(SCORES + "short.csv", "have 20 rows", "score these rows (leave scores= out)"),
    Case(SCORES + "long.csv", "have 30 rows", "score these rows (leave scores= out)"),
    Case(SCORES + "far.csv", "index 10 to 123", "score these rows (leave scores= out)"),
    Case(SCORES + "other-ids.parquet", "none with id", "name the data set that was scored"),
    Case(SCORES + "no-columns.csv", "no column nll_0", "Name the columns nll_0, nll_1"),
    Case(SCORES + "no-first.csv", "no nll_0", "Give every epoch"),
    Case(SCORES + "gap.csv", "no nll_1", "Give every epoch"),
    Case(SCORES + "only-first.csv", "these scores have 0", "Score again with"),
    Case(SCORES + "good.csv selection=lp selection.epochs=7", "needs 7 recorded epochs", "Score again with"),
    Case(SCORES + "words.csv", "column nll_0 is string", "must be numbers"),
    Case(SCORES + "words.parquet", "column nll_0 is string", "must be numbers"),
    Case(SCORES + "zero.csv", "ppl_0 of row 0 is 0.0", "Leave it empty"),
    Case(SCORES + "negative.csv", "ppl_0 of row 0 is -2.0", "Leave it empty"),
    Case(SCORES + "twice.csv", "index 0 stands there twice", "Keep one row of each"),
    Case(SCORES + "negative-index.csv", "column index holds -23", "must be 0 or more"),
    Case(SCORES + "fraction-index.csv", "column index is double", "must be a whole number"),
    Case(SCORES + "same-column.csv", "2 columns nll_0", "Keep one of them"),
    Case(SCORES + "same-column.parquet", "2 columns nll_0", "Keep one of them"),
    Case(SCORES + "half-clusters.csv", "column cluster is int64 with 1 empty", "or say cluster=none"),
    Case(SCORES + "no-rows.csv", "no-rows.csv: has no rows", "Give a table with a row"),
    *[
        Case(SCORES + name, f"scores=scores/{name}: cannot be read", "Give a whole .parquet, .csv or .npz file")
        for name in ("empty.csv", "empty.parquet", "binary.csv", "../binary.parquet")
    ],
    *[
        Case(SCORES + name, f"scores=scores/{name}: cannot be read", "Give a whole .npz without pickles")
        for name in ("empty.npz", "binary.npz", "pickle.npz", "array.npz", "half.npz", "lies.npz")
    ],
    Case(SCORES + "bomb.npz", "scores=scores/bomb.npz", UNPACK),
    Case(SCORES + "no-id.parquet", "column id is null", "or left out as a column"),
    Case(SCORES + "two.npz", "has the arrays a, b", "Say which with scores_key=NAME"),
    Case(SCORES + "two.npz scores_key=c", "scores_key=c", "Name one of them"),
    Case(SCORES + "good.csv scores_key=c", "scores_key=c", "Leave it out"),
    Case(SCORES + "flat.npz", "of shape (24,)", "must be perplexities"),
    Case(SCORES + "text.npz", "array ppl is <U1", "must be perplexities"),
    Case(SCORES + "clusters.npz", "cluster has shape (7,)", "must be (24,)"),
]

MODELS = [
    Case("select scorer.path=./nowhere", "./nowhere", "give a model folder or a Hugging Face id"),
    Case("select scorer.path=a/b/c", "a/b/c", "give a model folder or a Hugging Face id"),
    Case("select scorer.path=no-such-org/no-such-model", "no-such-org/no-such-model", "give a model folder"),
    Case(SCORER + "empty", "models/empty: has no config.json", "give a folder that save_pretrained wrote"),
    Case(SCORER + "no-config", "models/no-config: has no config.json", "give a folder that save_pretrained wrote"),
    Case(SCORER + "no-weights", "models/no-weights: has no weights", "give a folder that save_pretrained wrote"),
    Case(SCORER + "half-config", "config.json describes no model", "give a folder that save_pretrained wrote"),
    Case(SCORER + "list-config", "config.json describes no model", "give a folder that save_pretrained wrote"),
    Case(SCORER + "no-tokenizer", "models/no-tokenizer: has no tokenizer", "give a folder that has one"),
    Case(SCORER + "missing-shard", "model-00001-of-00002.safetensors", "copy the model's folder again"),
    Case(SCORER + "pickled", "pickled (pytorch_model.bin)", "say model.bin_weights=true if you trust"),
    Case(SCORER + "good scorer.max_length=513", "max_length=513", "give 512 or less"),
    late(SCORER + "half-tokenizer tracker=none", "models/half-tokenizer", "give a complete model folder"),
    late(SCORER + "few-tokens tracker=none", "tokenizer has 256 tokens, its model knows 200", "its own tokenizer"),
    late(SCORER + "good scorer.template=chat tracker=none", "template=chat", "Say model.template=alpaca"),
    late(SCORER + "unknown-type tracker=none", "perceiver-of-the-third-kind", "give a model that transformers knows"),
    late(SCORER + "own-code tracker=none", "models/own-code", "trust_remote_code=true if you trust the code"),
    late(SCORER + "not-causal tracker=none", "models/not-causal: cannot be loaded", "give one that save_pretrained"),
    late(
        SCORER + "half-weights tracker=none", "models/half-weights: cannot be loaded", "give one that save_pretrained"
    ),
    late(SCORER + "no-header tracker=none", "models/no-header: cannot be loaded", "give one that save_pretrained"),
    late(SCORER + "other-shape tracker=none", "models/other-shape: cannot be loaded", "give one that save_pretrained"),
    Case("train model.path=models/no-weights dataset=embedded scorer=tiny", "models/no-weights", "give a folder that"),
    Case("train model.path=models/pickled dataset=embedded scorer=tiny", "pytorch_model.bin", "model.bin_weights=true"),
    Case("train model.max_length=1", "max_length=1", "must be at least 2 tokens"),
]

EVALUATIONS = [
    Case("evaluate tracker=none", "model: none given", "say model=RUN_OR_MODEL"),
    Case("evaluate model=./nowhere", "./nowhere", "give a model folder or a Hugging Face id"),
    *[
        Case(f"evaluate model={name}", f"model={name}", "give one of these, a name in conf/model")
        for name in ("runs/empty", "runs/half", "runs/deep", "runs/list", "runs/foreign", "models/empty")
    ],
    Case("evaluate model=models/no-weights", "models/no-weights", "give a folder that save_pretrained wrote"),
    Case("evaluate model=models/pickled", "pytorch_model.bin", "bin_weights=true"),
    Case(REFERENCE + "baseline=./nowhere", "./nowhere", "give a model folder"),
    Case(REFERENCE + "max_length=513", "max_length=513", "give 512 or less"),
    Case(REFERENCE + "template=vicuna", "template=vicuna", "must be one of alpaca"),
    Case(REFERENCE + "evaluator.max_new_tokens=0", "evaluator.max_new_tokens=0", "at least 1"),
    Case(REFERENCE + "evaluator.batch_tokens=many", "evaluator.batch_tokens=many", "must be a whole number"),
    Case(REFERENCE + "evaluator.resamples=0", "evaluator.resamples=0", "at least 1"),
    Case(REFERENCE + "seed=-1", "seed=-1", "from 0 to 4294967295"),
    Case(REFERENCE + "dataset.path=nowhere.jsonl", "nowhere.jsonl", "Check the name and the folder"),
    Case(REFERENCE + "dataset.path=half.jsonl", "half.jsonl, line 24", MEND_ROW),
    late(REFERENCE + "evaluator.max_new_tokens=600", "evaluator.max_new_tokens=600", "Set 256 or less"),
    Case(
        "evaluate tracker=none model=gpt@http://127.0.0.1:9/v1", "gpt@http://127.0.0.1:9/v1", "say evaluator=pairwise"
    ),
    Case("evaluate evaluator=pairwise tracker=none model=models/good", "needs two to compare", "baseline=RUN_OR_MODEL"),
    Case(PAIR, "prompts: none given", "say prompts=NAME_OR_FILE"),
    Case(PAIR + "prompts=nowhere", "prompts=nowhere", "Set one of alpaca_eval, koala"),
    Case(PAIR + "prompts=nowhere.jsonl", "prompts=nowhere.jsonl", "Check the path"),
    Case(PAIR + "prompts=prompts/text.txt", "prompts/text.txt", "Name a file that ends in"),
    Case(PAIR + "prompts=prompts/empty.jsonl", "prompts/empty.jsonl", "Choose another set"),
    Case(PAIR + "prompts=prompts/silent.jsonl", "row 0: prompt: has no text", "Add text or remove the row"),
    Case(PAIR + "prompts=prompts/columns.jsonl", "columns=question", "Rename a column"),
    Case(PAIR + "prompts=prompts/number.jsonl", "found int '3'", "convert it to a string"),
    Case(PAIR + "prompts=prompts/half.jsonl", "half.jsonl, line 1", MEND_ROW),
    Case(PAIR + "prompts=prompts/ids.jsonl", "the id ids/a is not unique", "Give every prompt in a set its own id"),
    Case(PAIR + "'prompts=[]'", "prompts=[]", "Set prompts=NAME_OR_FILE"),
    Case(PAIR + "'prompts=[prompts/good.jsonl,prompts/good.jsonl]'", "2 sets are named good", "Give every set once"),
    Case(PAIR + "prompts=good prompts_dir=nowhere", "prompts_dir=nowhere", "Set a folder with prompt files, or null"),
    Case(PAIR + "prompts=http://127.0.0.1:9/p.jsonl", "127.0.0.1:9/p.jsonl", "Download it some other way"),
    Case(PAIR + "prompts=http://127.0.0.1:9/p.txt", "127.0.0.1:9/p.txt", "a file that ends in"),
    Case(PAIR + "prompts=../../../etc/passwd", "etc/passwd", "file"),
    Case(JUDGE + "evaluator.limit=0", "limit=0", "Set null to use all prompts"),
    Case(JUDGE + "evaluator.temperature=-1", "evaluator.temperature=-1", "at least 0"),
    Case(JUDGE + "evaluator.top_p=0", "evaluator.top_p=0", "greater than 0"),
    Case(JUDGE + "evaluator.resamples=none", "evaluator.resamples=none", "must be a whole number"),
    Case(JUDGE + "judge=reference judge.measure=bleu", "judge.measure=bleu", "must be one of rouge_l, exact_match"),
    late(JUDGE + "judge=reference", "none of 2 prompts has a reference answer", "take prompts with references"),
    late(JUDGE + "judge=human judge.question=' '", "judge.question: is empty", "say what people shall judge"),
    Case(JUDGE + "judge=hf", "judge.model.path", "say judge.model.path="),
    late(JUDGE + "judge=hf judge.model.path=./nowhere", "./nowhere", "give a model folder"),
    late(JUDGE + "judge=hf judge.model.path=models/good", "template=chat", "template=alpaca"),
    late(JUDGE, "OPENAI_API_KEY: not set", "export OPENAI_API_KEY=KEY"),
    late(
        JUDGE + "judge.base_url=http://127.0.0.1:9/v1 judge.max_retries=0", "127.0.0.1:9", "check that the server runs"
    ),
    Case(JUDGE + "judge.base_url=ftp://x", "judge.base_url=ftp://x", "must be an address such as"),
    Case(JUDGE + "judge.prompt=nowhere", "judge.prompt=nowhere", "give letter, pairwise, score"),
    Case(JUDGE + "judge.prompt=judge-without-places.txt", "judge-without-places.txt", "says where all of"),
    Case(JUDGE + "judge.prompt=judge-latin1.txt", "judge-latin1.txt", "the path of a UTF-8 file"),
    Case(JUDGE + "'judge.orders=[sideways]'", "sideways", "must be [baseline_first]"),
    Case(JUDGE + "judge.attempts=0", "judge.attempts=0", "1 or more"),
    Case(JUDGE + "judge.concurrency=0", "judge.concurrency=0", "1 or more"),
    Case(JUDGE + "judge.timeout=long", "judge.timeout=long", "must be above 0 seconds"),
    Case(JUDGE + "judge.max_retries=-1", "judge.max_retries=-1", "0 or more"),
    Case(JUDGE + "judge.max_cost=1", "judge.max_cost=1", "needs judge.prompt_price"),
    Case(JUDGE + "judge.prompt_price=-1", "judge.prompt_price=-1", "must be 0 dollars or more"),
    late(JUDGE.replace("model=models/good", "model=gpt@http://127.0.0.1:9/v1", 1), "127.0.0.1:9", "Check the address"),
    Case(IMPORT + "nowhere.json", "judgements/nowhere.json", "Check the name"),
    Case(IMPORT + "text.txt", "judgements/text.txt", "give .json"),
    Case(IMPORT + "empty.json", "judgements/empty.json", "give a file that has some"),
    Case(IMPORT + "half.json", "judgements/half.json, line 1", MEND_FILE),
    Case(IMPORT + "no-preference.json", "neither preference nor verdict", "rename a column"),
    Case(IMPORT + "nothing.json", "none of 1 rows was judged", "give a file with verdicts"),
    Case(IMPORT + "no-prompt.json", "no id and no instruction", "a row needs one of them"),
    Case(IMPORT + "words.json", "'maybe'", "A preference is 1"),
    Case(IMPORT + "far.json", "preference 7", "A preference is 1"),
    Case(IMPORT + "twice.json", "2 verdicts on y for the same prompt, 'a'", "leave one"),
    Case(IMPORT + "baselines.json", "two baselines, x and z", "give a file for each"),
    Case(IMPORT + "orders.json", "3 orders, a, b, c", "give each row one of two"),
    Case(IMPORT + "chars.json", "model_chars 'many'", "give one, or leave it empty"),
    Case("evaluate evaluator=lm_eval tracker=none model=models/good", "tasks=null", "say tasks=[hellaswag"),
    Case("evaluate evaluator=lm_eval tracker=none 'tasks=[x]'", "model: none given", "say model=RUN_OR_MODEL"),
    Case("evaluate evaluator=lm_eval 'tasks=[x]' evaluator.limit=0", "evaluator.limit=0", "at least 1"),
    Case(
        "evaluate evaluator=lm_eval 'tasks=[x]' evaluator.include_path=no",
        "include_path=no",
        "give one with task files",
    ),
]

FURTHER = [
    Case("agreement", "TABLE", "see lpsel agreement --help"),
    Case("agreement scores/good.csv", "scores/good.csv: is one table", "name two or more"),
    Case(AGREE + "nowhere.csv", "nowhere.csv", "Name a scores folder"),
    Case(AGREE + "scores/short.csv", "has 20 rows", "give scores of the same rows"),
    Case(AGREE + "scores/far.csv", "has index 10", "give scores of the same rows"),
    Case(AGREE + "scores/words.csv", "column nll_0 is string", "must be numbers"),
    Case(AGREE + "scores/two.npz:c", "scores_key=c", "Name one of them"),
    Case(AGREE + "scores/array.npz", "scores/array.npz: cannot be read", "Give a whole .npz"),
    Case(AGREE + "scores/bomb.npz", "scores/bomb.npz", UNPACK),
    Case(AGREE + "runs/empty", "runs/empty", "give one of these"),
    Case(AGREE + "runs/deep", "runs/deep", "give one of these"),
    Case(AGREE + "runs/no-scores", "runs/no-scores", "give one that has some"),
    Case(AGREE + "runs/lost-scores", "nowhere.parquet", "give a run whose scores are"),
    Case(AGREE + "scores/good.csv --pct ten", "--pct ten", "give numbers above 0"),
    Case(AGREE + "scores/good.csv --pct 0", "pct=0.0", "must be above 0 and at most 100"),
    Case(AGREE + "scores/good.csv --clusters nowhere.csv", "--clusters nowhere.csv", "Give a .parquet or .csv"),
    Case(AGREE + "scores/good.csv --clusters scores/good.csv", "has no column cluster", "give a table that has one"),
    Case(AGREE + "scores/good.csv --clusters binary.csv", "--clusters binary.csv", "Give a whole table"),
    Case(AGREE + "scores/good.csv --wrong", "--wrong", "see lpsel agreement --help"),
    Case(AGREE + "scores/good.csv --out a-file/x", "a-file/x", "give a folder you may write to"),
    Case("votes", "FILE", "see lpsel votes --help"),
    Case("votes nowhere.json", "nowhere.json", "give files that the page downloads"),
    Case("votes hidden", "hidden", "give files that the page downloads"),
    *[
        Case(f"votes votes/{name}.json", f"votes/{name}.json: is not a file of votes", "give files that the page")
        for name in ("half", "deep", "binary", "list", "nameless")
    ],
    Case("votes votes/choice.json", '"both"', "download the file again"),
    Case("votes votes/time.json", '"yesterday"', "download the file again"),
    Case("votes votes/far.json --key votes/key.json", "pair 7, the page has 1", "download the file again"),
    Case("votes votes/good.json --key nowhere.json", "--key nowhere.json", "give the key.json beside the page"),
    *[
        Case(f"votes votes/good.json --key votes/{name}-key.json", f"votes/{name}-key.json", "give the key.json beside")
        for name in ("bad", "odd", "deep")
    ],
    Case("votes votes/other-page.json --key votes/key.json", "page q", "give votes on one page, and its key"),
    Case("votes votes/none.json --key votes/key.json", "votes/none.json", "give files with votes"),
    Case("votes votes/skipped.json --key votes/key.json", "votes/skipped.json", "give files with votes"),
    Case("report", "RUN", "see lpsel report --help"),
    Case("report nowhere", "nowhere", "name run folders"),
    Case("report good.jsonl", "good.jsonl", "name run folders"),
    *[
        Case(f"report runs/{name}", f"runs/{name}: no finished run", "name folders of train, select")
        for name in ("empty", "half", "deep", "foreign")
    ],
    Case("report runs --out report-in-the-way", "report-in-the-way", "Name another folder"),
    Case("report runs --out a-file", "a-file", "Name another folder"),
    Case("publish", "RUN", "see lpsel publish --help"),
    *[
        Case(f"publish {name}", f"{name}: not a finished run", "give one")
        for name in ("nowhere", "runs/empty", "runs/half", "runs/deep", "runs/list", "runs/foreign", "runs/no-scores")
    ],
    Case("publish runs/lost-subset", "nowhere.jsonl: does not exist any more", "Select again"),
    Case("publish runs/no-license", "dataset mine", "give --license ID"),
    Case("publish runs/no-fields --license mit", "'n_selected' is not as select writes it", "select again"),
    Case("publish runs/lost-subset --too x", "--too x", "see lpsel publish --help"),
]

LONG = "x" * 300 + ".jsonl"
OUT_OF_REACH = [
    Case(DATA + "locked-good.jsonl", "locked-good.jsonl: ", "may read"),
    Case(DATA + "locked-good.parquet", "locked-good.parquet: ", "may read"),
    Case(DATA + "locked/good.jsonl", "locked/good.jsonl: ", "may read"),
    Case(DATA + "locked", "locked", "name a file"),
    Case(DATA + "loop.jsonl", "loop.jsonl", "Check the name"),
    Case(DATA + "dangling.jsonl", "dangling.jsonl", "Check the name"),
    Case(DATA + "device.jsonl", "device.jsonl: is no plain file", "name a file that ends in"),
    Case(DATA + "folder.jsonl", "folder.jsonl", "name a file that ends in"),
    Case(DATA + "pipe.jsonl", "pipe.jsonl: is no plain file", "name a file that ends in"),
    Case(DATA + "good.jsonl/x.jsonl", "good.jsonl/x.jsonl", "Check the name"),
    Case(DATA + LONG, f"{LONG}: File name too long", "check the name"),
    *[
        Case(f"select dataset.path=good.jsonl scores={name}", f"{name}", "may read")
        for name in ("locked-good.csv", "locked-good.parquet", "locked-good.npz", "scores/locked")
    ],
    Case(f"select dataset.path=good.jsonl scores={LONG}", f"{LONG}: File name too long", "check the name"),
    Case("select dataset.path=good.jsonl scores=pipe.jsonl", "pipe.jsonl", "Name a scores folder"),
    Case(SCORER + "locked", "models/locked", "may read"),
    Case(SCORER + "locked-config", "models/locked-config", "may read"),
    late(SCORER + "locked-weights tracker=none", "models/locked-weights", "may read"),
    Case(f"select scorer.path=./{LONG}", f"{LONG}: File name too long", "check the name"),
    Case("select dataset.path=good.jsonl cache_dir=read-only/x", "read-only/x", "give cache_dir=FOLDER or LPSEL_CACHE"),
    Case(SCORER + "good cache_dir=read-only tracker=none", "read-only", "give cache_dir=FOLDER or LPSEL_CACHE"),
    Case("select hydra.run.dir=read-only/x", "read-only/x", "give hydra.run.dir="),
    Case("select hydra.run.dir=read-only", "read-only", "give hydra.run.dir="),
    Case("evaluate model=runs/locked", "runs/locked", "may read"),
    Case("evaluate model=models/locked", "models/locked", "may read"),
    Case(PAIR + "prompts=locked-good.jsonl", "locked-good.jsonl", "Check the path and its permissions"),
    Case(PAIR + "prompts=locked/good.jsonl", "locked/good.jsonl", "Check the path and its permissions"),
    Case(PAIR + "prompts=pipe.jsonl", "pipe.jsonl", "a file that ends in"),
    Case(PAIR + "prompts=good prompts_dir=locked", "locked", "Check the path and its permissions"),
    Case(JUDGE + "judge.prompt=locked-prompt.txt", "locked-prompt.txt", "the path of a UTF-8 file"),
    Case(JUDGE + "judge.prompt=locked/prompt.txt", "locked/prompt.txt", "the path of a UTF-8 file"),
    Case(IMPORT + "../locked-good.jsonl", "locked-good.jsonl", "may read"),
    Case(AGREE + "locked-good.csv", "locked-good.csv", "may read"),
    Case(AGREE + "scores/locked", "scores/locked", "may read"),
    Case(AGREE + "scores/good.csv --out read-only/x", "read-only/x", "give a folder you may write to"),
    Case(AGREE + "runs/locked", "runs/locked", "may read"),
    Case("votes locked-vote.json", "locked-vote.json: cannot be read (Permission denied)", "give files that"),
    Case("votes locked/vote.json", "locked/vote.json: cannot be read (Permission denied)", "give files that"),
    Case("votes votes/good.json --key locked-vote.json", "cannot be read (Permission denied)", "give the key.json"),
    Case("report runs/locked", "runs/locked", "may read"),
    Case("report runs/no-scores --out read-only/x", "read-only/x", "name a folder you may write to"),
    Case("publish runs/locked", "runs/locked", "may read"),
]

WITH_KEY = "OPENAI_API_KEY=sk-canary "
SERVICES = [
    late(WITH_KEY + JUDGE + "judge.base_url=SERVER", "does not take the key (401)", "variable OPENAI_API_KEY"),
    late("MINE=canary " + JUDGE + "judge.base_url=SERVER judge.key_env=MINE", "does not take the key", "variable MINE"),
    late(JUDGE + "judge.base_url=SERVER", "does not take the key (401)", "put the right one"),
    late("OPENAI_API_KEY=right " + JUDGE + "judge.base_url=SERVER judge.model=other", "no model other", "judge.model="),
    Case(JUDGE + "judge.request=7", "judge.request=7", "must be parameters"),
    Case(JUDGE + "judge.request=warm", "judge.request=warm", "must be parameters"),
    late(
        JUDGE + "judge.base_url=http://nowhere.invalid/v1 judge.max_retries=0", "nowhere.invalid", "server runs there"
    ),
    late(
        WITH_KEY + JUDGE.replace("model=models/good", "model=m@SERVER judge=human", 1),
        "rejects the API key (401)",
        "variable OPENAI_API_KEY",
    ),
    late(
        JUDGE.replace("model=models/good", "model=m@http://nowhere.invalid/v1", 1),
        "nowhere.invalid",
        "Check the address",
    ),
    Case(SELECT, "tracker.mode=online: there is no account", "run wandb login"),
    Case(
        f"{ACCOUNT} WANDB_BASE_URL=http://127.0.0.1:9 {SELECT}", "127.0.0.1:9 does not answer", "tracker.mode=offline"
    ),
    Case(f"{ACCOUNT} WANDB_BASE_URL=http://nowhere.invalid {SELECT}", "http://nowhere.invalid", "tracker.mode=offline"),
    Case(f"{ACCOUNT} WANDB_BASE_URL=nowhere {SELECT}", "nowhere does not answer", "say tracker.mode=offline or"),
    Case("select dataset.path=no-such/rows", "no-such/rows", "Hub data set that you can"),
]

CASES = [*COMMAND_LINE, *RANGES, *ROWS, *TABLES, *MODELS, *EVALUATIONS, *FURTHER, *OUT_OF_REACH, *SERVICES]
