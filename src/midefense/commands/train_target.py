"""Train a classifier with a defense: dataset x architecture x defense -> a target in the store.

midefense train dataset=digits architecture=cnn defense=random_erasing
"""

from midefense.commands.entry import entry


def say(artefact) -> str:
    metrics = artefact.metrics
    if artefact.kind == "cloud":
        numbers = (f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))
        return f"the cloud's half: {', '.join(numbers)}"
    if "attributes" in metrics:
        auc = metrics["test_attribute_auc_mean"]
        return f"mean test AUC {auc:.4f} over {len(metrics['attributes'])} attributes"
    return f"test accuracy {metrics['test_accuracy_top1']:.4f} ({metrics['classes']} classes)"


main = entry("train_target", lambda pipeline: pipeline.cloud if pipeline.plan.cloud else pipeline.target.artefact, say)

if __name__ == "__main__":
    main()
