"""Attack a target through its oracle: prior + attack -> recovered latents in the store.

midefense attack dataset=digits architecture=cnn defense=none attack=pool_small
midefense attack target=<reference> attack=mi_face
"""

from midefense.commands.entry import entry


def say(artefact) -> str:
    bill, stopped = artefact.provenance["bill"], artefact.metrics["stopped"]
    end = f"; stopped early: {stopped[0]}" if stopped else ""
    return f"{artefact.metrics['candidates']} candidates, {bill['queries_per_target_mean']:.0f} queries per target{end}"


main = entry("attack", lambda pipeline: pipeline.recovered, say)

if __name__ == "__main__":
    main()
