"""Skills, workflows and models as packages: what a publisher writes, what is under its hash, how it is run.

    skill = load_skill(Path("word-count"))      # manifest: skill.toml, openapi.json and code, checked
    skill.card.hash                             # what License.vy records as a release's content
    await content.put(skill.card.bytes)         # readers get it by its hash, and verify it
    answer = await Sandbox().run(folder, card.run, "count", {"text": "a b"})

The card is the public part: name, version, limits, OpenAPI document, examples. It names the package, which holds the
code, by hash; whoever executes the skill needs it, whoever calls it does not.
"""
