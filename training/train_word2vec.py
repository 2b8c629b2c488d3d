"""Train vectors of words on a text: word2vec, skip-gram or CBOW with negative sampling."""

from pathlib import Path

from hfgen.families.word2vec.options import DESCRIPTION, EXAMPLE, GROUPS
from hfgen.options import parse_or_exit, parser, program


def main(argv: list[str] | None = None) -> None:
    """Parse options, train, and save the pipeline with its vocabulary and card."""
    parsed = parse_or_exit(parser(program("word2vec"), DESCRIPTION, EXAMPLE, *GROUPS), argv, *GROUPS)
    text_args, vector_args, args = parsed

    import hfgen
    from hfgen.data.text import WindowData, sentences_of
    from hfgen.families.run import Run
    from hfgen.families.word2vec.preview import WordPreview

    with Run(parsed, "word2vec") as run:
        if text_args.text is None:
            raise ValueError("Give the text file to train on: --text path/to/text.txt")
        name = Path(text_args.text).name  # of the data: cards name no folder of this machine
        data = WindowData(sentences_of(text_args.text), vector_args.window, text_args.min_count, name)
        sampling = {"negatives": vector_args.negatives, "subsample": vector_args.subsample}
        run.train(
            networks={"vectors": hfgen.WordVectorsModel(len(data.words), vector_args.dimension)},
            objective=hfgen.NegativeSampling(
                data.counts, vector_args.method, **sampling, power=vector_args.noise_power
            ),
            pipeline=lambda networks: hfgen.WordVectorsPipeline(networks["vectors"], data.words),
            preview=WordPreview(args.seed),
            data=data,
        )


if __name__ == "__main__":
    main()
