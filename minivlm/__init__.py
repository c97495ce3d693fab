"""minivlm: a vision-language model, from random weights to an aligned chatbot.

The rooms. What the recipe is about stands at the top; what serves it stands in rooms behind.

    losses rl optim                                the mathematics; no model is called here
    transformer masks cache vit gpt clip           the networks
    projector vlm captioner heads lora
    tokenizer conversation generate rollout        words in, words out
    loading/      from files to tensors: records, pictures, batches; from checkpoints to models
    metrics/      the figures as formulas: recall, CIDEr, VQA accuracy, POPE, CHAIR
    evaluation/   is an answer right? scenes, refusals, raters; what evaluate.py measures
    preferences/  rankings, pairs made from them, prompts, judges; for stage 4
    engine/       LLaVA's data engine: teachers that write dialogues, checks of what they write
    pretrained/   other people's weights: read, written, and which name is which
    running/      what every script needs and no paper mentions: options, run folder, checkpoints

Imports go one way: scripts and data/ import from here, nothing here imports from them. The
mathematics imports nothing of the project but losses; networks import mathematics and networks.

The glossary. Each word has one meaning, in code, messages and documents.

    run               one training of one script; its folder holds log and checkpoints
    record            one JSON object of a data folder, with an id; a split is a file of them
    held-out records  records that no training reads (val.jsonl and the like)
    scene             what a picture really shows: its objects, where they are, how they look
    visible object    an object of the scene that the picture shows clearly
    barely visible    an object that the annotation lists and the picture hardly shows (tiny, faint,
                      nearly covered); its record has the key `hidden`
    invented object   an object that an answer names and the picture does not show
    unseen pairs      color-shape pairs that are never drawn, told or asked about in training
    unseen phrasings  ways to ask that no training dialogue uses
    gray picture      what a model sees when its blind baseline is measured
    row               the token ids of one text, and which of them are answers (conversation.Row)
    segment           which answer of a packed row a token belongs to; 0 is the shared prompt
    batch             rows with their pictures, padded; a micro-batch is a part of it
    placeholder       the id that stands for one image token
    prompt            the ids before an answer; its question is a text
    facts             true captions of the picture, shown to the reward model only
    ranking           a question, K answers, and a rank for each; 1 is best
    pair              a question with a chosen and a rejected answer
    rating            points from 1 to 5 on an axis; a rater gives ratings, a judge is a rater that
                      is a model
    true score        the mean rating of an answer by the scene itself; nothing learns from it
    score             what the reward model gives an answer
    policy            the chatbot that is trained in stage 4
    reference         the frozen chatbot that the policy started from
    rollout           a batch of the policy's own answers, with what the other models say of them
    teacher           a language model, or templates, that writes dialogues without seeing pictures
    refusal           an answer that declines; it is right if the question must be refused

Sizes: B batch, T positions, N image tokens, C width, H heads, D head width, V vocabulary, P patch
side and S image side in pixels. A shape stands at the right of each line that changes one.
"""
