"""minivlm: a vision-language model, from random weights to an aligned chatbot.

The rooms. The files at the top of this folder are the recipe. The rooms below serve it.

    losses rl optim                     the mathematics; no model is called here
    transformer rotary cache            the networks
    attention_masks
    vit gpt clip projector vlm
    captioner heads lora
    tokenizer sentencepiece             words in, words out
    templates conversation
    generate rollout chatbot
    export                              a command; pretrained/export.py does its work

    loading/      from files to tensors: records, pictures, batches; from checkpoints to
                  models
    metrics/      the figures as formulas: recall, CIDEr, VQA accuracy, POPE, CHAIR
    evaluation/   is an answer right? scenes, refusals, raters; what evaluate.py measures
    preferences/  rankings, pairs made from them, prompts, judges; for stage 4
    engine/       LLaVA's data engine: teachers that write dialogues, and checks of these
    pretrained/   other people's weights: read, written, and which name is which
    running/      what every script needs and no paper mentions: options, run folder,
                  checkpoints

Imports go one way: scripts and data/ import this package, and it imports neither. losses
imports nothing of the project, and rl only losses. Networks import losses and other
networks; captioner also imports the type of its batches. optim imports networks, because it
looks for their matrices.

The glossary. Each word has one meaning, in code, messages and documents.

    run               one training of one script; its folder holds log and checkpoints
    record            one JSON object of a data folder, with an id; a split is a file of
                      records
    held-out records  records that no training reads (val.jsonl and the like)
    scene             what a picture really shows: its objects, where they are, how they
                      look
    visible object    an object of the scene that the picture shows clearly
    barely visible    an object that the annotation lists and the picture hardly shows
                      (tiny, faint, nearly covered); its record has the key `hidden`
    invented object   an object that an answer names and the picture does not show
    unseen pairs      pairs of a color and a thing, or of a thing and a wrong home, that no
                      picture and no text of the training data contains
    unseen phrasings  ways to ask that no training data use
    gray picture      what a model sees when its blind baseline is measured
    row               the token ids of one text, and which of them are answers
                      (conversation.Row)
    segment           which answer of a packed row (conversation.pack) a token belongs to;
                      0 is the prompt that the answers share
    batch             rows with their pictures, padded; a micro-batch is a part of a batch
    placeholder       the id that stands for one image token
    prompt            the ids before an answer; a question is a text
    facts             sentences that are true of a kind of thing: "a cat eats fish"
    untold facts      facts that only the text of stage 0 holds, and no dialogue
    --facts           of train_reward.py: true captions, shown to the reward model only
    ranking           a question, K answers, and a rank for each; 1 is best
    pair              a question with a chosen and a rejected answer
    rating            points from 1 to 5 on an axis; a rater gives ratings, and a judge is
                      a rater that is a model
    true score        an answer's mean rating by the scene itself; no model learns from it
    score             the number that the reward model gives an answer; only in a beam
                      search, a text's log-probability after length normalization
    policy            the chatbot that is trained in stage 4
    reference         the frozen chatbot that the policy started from
    rollout           a batch of answers that the policy drew, with what the other models
                      compute about them
    group             k answers to one prompt, compared with each other; it is dead if all
                      score alike
    teacher           a language model, or a set of templates, that writes dialogues
                      without seeing pictures
    refusal           an answer that declines; it is right if the question must be refused

Sizes: B batch, T positions, N image tokens, C width, H heads, D head width, V vocabulary,
K answers or beams, P side of a patch and S side of a picture in pixels. In a VLM, C is the
GPT's width and Cv the ViT's. n counts pictures, b some of the B rows, M selected positions.
Where a line changes a shape, the new shape stands at its right.
"""
